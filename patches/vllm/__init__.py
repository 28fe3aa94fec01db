"""The vLLM recorder.

Empty on purpose: it is imported on the way to `plugin`, in every process of vLLM.
"""
