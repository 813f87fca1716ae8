"""Published compression algorithms, one file per family."""
