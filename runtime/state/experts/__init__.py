"""Replicas of experts on ranks, and experts that move between them."""
