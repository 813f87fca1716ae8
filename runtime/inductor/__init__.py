"""Generated functions through inductor, one graph between two calls of their collectives."""
