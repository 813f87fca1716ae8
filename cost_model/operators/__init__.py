"""Seconds and bytes of operators and of functions."""
