"""Compressed communication as data: stages in a list, lists fused into kernels, laws checked."""
