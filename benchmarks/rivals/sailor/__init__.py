"""Sailor's problem: its profiles, its judge of plans, and a search of ours on its costs."""
