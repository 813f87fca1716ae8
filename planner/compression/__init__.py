"""Choice of compression programs for collectives, activations and optimizers."""
