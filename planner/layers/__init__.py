"""How many layers of each stage run which way: the exact search on pure data."""
