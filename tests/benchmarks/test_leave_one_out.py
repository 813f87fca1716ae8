"""Factors are fitted where they pay on sources that had no say in them, and left at 1 elsewhere."""

import numpy as np
import pytest

from plait.benchmarks.leave_one_out import Sensitivity, scores

SOURCES, RUNS = 12, 5


def fitted_factors(bias_of_source):
    """The compute factor of every source, where runs are wrong by a bias and take compute alone."""
    noise = np.random.default_rng(0).normal(0, 0.03, (SOURCES, RUNS))
    logs = (np.array(bias_of_source)[:, None] + noise).ravel()
    names = tuple(f"s{i // RUNS}" for i in range(logs.size))
    found = scores(Sensitivity(names, logs, np.tile([1.0, 0.0, 0.0], (logs.size, 1))))
    return [score.factors.compute for score in found]


def test_a_slowdown_that_all_sources_share_is_fitted():
    assert fitted_factors([-np.log(1.2)] * SOURCES) == pytest.approx([1.2] * SOURCES, rel=0.03)


def test_what_a_few_sources_ask_for_is_not():
    assert fitted_factors([-np.log(1.2)] * 3 + [0.0] * (SOURCES - 3)) == [1.0] * SOURCES
