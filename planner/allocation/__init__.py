"""Memory: an address for every buffer, and flat buffers of parameters."""
