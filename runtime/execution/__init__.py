"""Execution of calls, micro-batches and transfers on a rank."""
