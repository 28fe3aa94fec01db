"""A Triton backend that compiles nothing: with TRITON_INTERPRET=1 kernels are interpreted.

vLLM's Model Runner V2, which captures routes from 0.31 on, launches Triton kernels, and PyPI's
Triton has no backend for CPUs. Tests only: an interpreted kernel takes milliseconds.
"""
