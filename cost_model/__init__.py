"""Seconds and bytes of functions, collectives and schedules on a cluster."""
