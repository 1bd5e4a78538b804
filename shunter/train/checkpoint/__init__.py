"""Checkpoints: DCP's planners over our own storage (safetensors and JSON), published atomically."""
