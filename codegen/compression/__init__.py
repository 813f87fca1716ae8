"""Kernels of compression programs as source: one printer per backend."""
