"""The commands of `plait`: one module each, with its arguments and its work."""
