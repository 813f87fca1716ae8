"""Prices of a candidate: from functions to calls, to stages, to the full step."""
