"""Peak bytes of a device and the cost of memory actions."""
