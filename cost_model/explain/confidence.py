"""How far a predicted step may be from the measured one."""

# Predicted over measured seconds, or the inverse, of four of five runs that nobody here had seen when
# they were priced: 80 of 42 publications (docs/results/accuracy.md). Where a source was looked at, 1.2.
RANGE = 1.3

# Predicted seconds of two layouts of one job, over one another, up to which their order is not known:
# by source, the median of what errors of two layouts differ by (published runs of 14 sources).
CLOSE = 1.05
