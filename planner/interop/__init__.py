"""Plans to and from other planners, and plans shrunk for verification."""
