"""Explanation of predicted seconds and bytes, term by term."""
