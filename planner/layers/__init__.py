"""How many layers of each stage take which choice: mixes, and the exact search on pure data."""
