"""Plans to and from other planners, and plans made smaller."""
