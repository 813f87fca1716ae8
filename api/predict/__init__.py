"""Step time and peak memory of training runs that are described by rows of a table."""
