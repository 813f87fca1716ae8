"""Weights and gradients between ranks, beside the calls that read and give them."""
