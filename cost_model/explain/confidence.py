"""How far a predicted step may be from the measured one."""

# Predicted over measured seconds, or the inverse: twice the median error of sources that were left out
# of the fit of constants (10.9 %, `benchmarks/accuracy.py --leave-one-source-out`), which holds four of
# five runs where errors are spread as a normal distribution is.
RANGE = 1.2

# Predicted seconds of two layouts of one job, over one another, up to which their order is not known:
# by source, the median of what errors of two layouts differ by (published runs of 14 sources).
CLOSE = 1.05
