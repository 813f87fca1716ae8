"""Device placement: assign every operator of a graph to one device, minimising the makespan."""

from .options import PlacementOptions as PlacementOptions
