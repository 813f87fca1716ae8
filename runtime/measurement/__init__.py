"""Times of operators and collectives on this machine."""
