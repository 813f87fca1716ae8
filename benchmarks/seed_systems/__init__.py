"""The systems that Plait brings together: each one's published figure, and ours for the same."""
