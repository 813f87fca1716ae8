"""Passes over a recorded graph: functionalize, rewrite, decompose, simplify."""
