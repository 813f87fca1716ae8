"""The tensors of one program for other programs of the same module."""
