"""Parameters, optimizer states and checkpoints of one rank."""
