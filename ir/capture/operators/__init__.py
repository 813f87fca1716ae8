"""Plait's own torch operators, each differentiable."""
