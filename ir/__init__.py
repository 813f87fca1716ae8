"""What a model, a cluster, a plan and a program are: plain data, no torch (ir.capture excepted)."""
