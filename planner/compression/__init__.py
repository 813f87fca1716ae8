"""Which collectives, activations and optimizers travel compressed."""
