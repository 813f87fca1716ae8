"""How far a predicted step may be from the measured one."""

# Predicted over measured seconds, or the inverse: twice the median error of sources that were left out
# of the fit of constants (10.9 %, `benchmarks/accuracy.py --leave-one-source-out`), which holds four of
# five runs where errors are spread as a normal distribution is.
RANGE = 1.2
