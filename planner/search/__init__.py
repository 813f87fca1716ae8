"""The search over strategies and its outcome: a plan, a Pareto front, or why nothing fits."""
