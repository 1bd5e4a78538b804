"""Text from a model: KV cache, sampling, streaming."""
