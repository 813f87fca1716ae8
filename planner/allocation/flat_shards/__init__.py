"""Flat buffers for ZeRO: parameters laid out contiguously and sharded evenly over ranks."""

from .solve import flatten as flatten
