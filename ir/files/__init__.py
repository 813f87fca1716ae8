"""Strict reading and canonical writing of Plait's JSON files."""
