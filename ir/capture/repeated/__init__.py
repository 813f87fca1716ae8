"""Equal modules of a model: the first call is recorded, what the others record is copied from it."""
