"""Plans whose stages differ: device groups, their schedule, and one of them as a plan of its own."""
