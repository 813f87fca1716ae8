"""Backwards that the user wrote: autograd functions, and hooks on tensors, parameters and modules."""
