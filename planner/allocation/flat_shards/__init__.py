"""Flat buffers of zero stages: parameters behind one another, cut into equal shards."""

from .solve import flatten as flatten
