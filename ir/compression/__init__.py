"""Compressed communication as data: programs of stages, their checks, lowering to kernels."""
