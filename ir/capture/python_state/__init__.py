"""What lies outside tensors: attributes, closures, globals and random generators of the user's code."""
