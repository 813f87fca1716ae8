"""Plans on PyTorch's own distributed engine."""
