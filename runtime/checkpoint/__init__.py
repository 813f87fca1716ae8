"""Checkpoints: shards of tensors in files, generations of them, and the state of a program."""
