"""The search over strategies and what comes of it: a plan, a front, or the reason why nothing fits."""
