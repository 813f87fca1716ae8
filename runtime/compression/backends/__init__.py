"""Backends that run compression kernels, all with the same bits."""
