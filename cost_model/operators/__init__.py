"""Seconds and bytes of single operators and of functions."""
