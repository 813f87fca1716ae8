"""Compiled kernels of Plait's own operators."""
