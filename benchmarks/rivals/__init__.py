"""Galvatron's cost formulas over its profiles: one more source of costs."""
