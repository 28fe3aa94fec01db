"""The patch engine, the vLLM recorder and the Megatron replay.

Empty on purpose: vLLM imports `routereplay.patches.vllm.plugin` in every one of its
processes, and everything above that module runs first.
"""
