"""What recordings of a forward say: facts of nodes, regions of autocast, two sides of a branch."""
