"""Compressed optimizers: they take local gradients and do the compressed communication themselves."""
