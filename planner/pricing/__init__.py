"""Prices of a candidate, from functions to calls to stages to the whole step."""
