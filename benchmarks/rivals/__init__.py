"""Rivals of the planner, by their own formulas: Galvatron and OSDP."""
