"""Placement algorithms: each takes a problem and gives devices and an order."""
