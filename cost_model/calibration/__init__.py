"""From measurements to curves and factors of a cluster."""
