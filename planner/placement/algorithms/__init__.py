"""Placement algorithms: each maps a PlacementProblem to a PlacementCandidate."""
