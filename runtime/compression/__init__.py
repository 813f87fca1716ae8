"""Compressed communication at run time: codecs, exchanges, and optimizers made of them."""
