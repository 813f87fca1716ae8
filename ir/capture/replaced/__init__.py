"""Functions of torch that are called in another way while a model is recorded."""
