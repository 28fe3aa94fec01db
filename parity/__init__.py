"""Run vLLM and Megatron on one checkpoint and measure how far they are apart."""
