"""How a rank runs its calls, micro-batches and transfers."""
