"""Facts about functions that need no choice: axes, dataflow, uses, liveness."""
