"""Typed faces of outside solvers, and what no other point dominates."""
