"""Acceptance on GPUs: what can be known on one machine with one or more of them, in one table."""
