"""What ranks of device groups do otherwise: their pipeline, its borders, and sums of gradients."""
