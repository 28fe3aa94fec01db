"""What recording costs a vLLM server on a GPU: capture off, vLLM's own JSON, routereplay."""
