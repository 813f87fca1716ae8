"""Cost and event simulation of operator placements."""
