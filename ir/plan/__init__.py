"""What a plan decides: strategies, shardings, schedules, memory, as plain data."""
