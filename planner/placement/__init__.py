"""Placement: every operator of a graph on one device, as fast as memory allows."""

from .options import PlacementOptions as PlacementOptions
