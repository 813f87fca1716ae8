"""Programs held against one process, and their live bytes."""
