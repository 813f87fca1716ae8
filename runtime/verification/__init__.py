"""Verification of programs against one process, and of their live bytes."""
