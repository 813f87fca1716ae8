"""Memory actions on activations: keep, recompute, offload, chunked execution."""
