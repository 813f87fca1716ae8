"""Published algorithms as stage lists, one entry each; a new one is an entry in a file of its family."""
