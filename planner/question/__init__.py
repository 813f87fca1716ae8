"""What is asked of the planner: options, pins, the strategies to try, candidates, deadlines."""
