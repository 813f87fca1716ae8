"""Rivals of the planner, by their own formulas: Galvatron, OSDP, Sailor and Aceso."""
