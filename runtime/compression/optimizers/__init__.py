"""Optimizers that talk themselves: they take local gradients and exchange what they compress."""
