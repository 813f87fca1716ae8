"""How far a predicted step may be from the measured one."""

# A measured step lies between the predicted one over FASTER and that times SLOWER in four of five cases:
# tenth and ninetieth percentile of predicted over measured seconds, every source counting the same, of
# 445 runs of 42 publications whose layout is printed and that had no say in what they were priced with:
# one left out at a time, or written down before it was priced (docs/results/accuracy.md).
FASTER, SLOWER = 1.15, 1.35

# Predicted seconds of two layouts of one job, over one another, up to which their order is not known:
# by source, the median of what errors of two layouts differ by (published runs of 14 sources).
CLOSE = 1.05


def step_range(step_seconds: float) -> tuple[float, float]:
    """The least and the most seconds of a step that is predicted to take `step_seconds`, in four of
    five cases."""
    return step_seconds / FASTER, step_seconds * SLOWER
