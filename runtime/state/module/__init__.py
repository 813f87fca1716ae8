"""The user's module: first values of its tensors, and trained ones when they are asked for."""
