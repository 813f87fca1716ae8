"""From functions and a plan to per-device programs."""
