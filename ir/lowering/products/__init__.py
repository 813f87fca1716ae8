"""Matrix products of per-device functions: a bias inside, weights gathered in slices."""
