"""How many layers of each stage take which choice: layer-wise mixed strategies."""
