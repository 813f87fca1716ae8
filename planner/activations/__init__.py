"""What forward leaves for backward: keep, recompute, offload, chunk."""
