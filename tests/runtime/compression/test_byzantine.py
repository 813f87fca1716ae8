"""Training on eight ranks of which two lie: what every rule outlives, and what it does not."""

import pytest
import torch

from plait.benchmarks.byzantine import ATTACKS, LIARS, RANKS, RULES, new_sample_loss
from plait.runtime.compression.score import zeno_scores
from plait.runtime.compression.threads import run_ranks

HONEST, BROKEN = 0.4, 0.7  # held-out loss of four classes that overlap; guessing has 1.39
FALLS = {("mean", "sign flip"), ("krum", "inner product")}
CASES = [(rule, attack) for rule in RULES for attack in ATTACKS]


@pytest.mark.parametrize(
    "case",
    [
        case
        if case in FALLS | {("zeno", "inner product")}
        else pytest.param(case, marks=pytest.mark.long)
        for case in CASES
    ],
)
def test_rules_outlive_attacks(case):
    loss = new_sample_loss(*case)
    assert (loss > BROKEN) if case in FALLS else (loss < HONEST)


def test_scores_are_a_majoritys():
    """Judges that lie do not change the order."""

    def work(levels):
        rank = levels.all.index
        lies = rank >= RANKS - LIARS

        def loss_after(update):
            honest = float((update - 1).square().sum())  # the step against ones is the best
            return -1e6 * honest if lies else honest

        update = torch.full((4,), -1.0 if lies else 1.0 + 0.01 * rank)
        return zeno_scores(levels.all, update, loss_after, 0.0)

    results = run_ranks(work, RANKS)
    assert all(torch.equal(results[0], other) for other in results)
    assert results[0].argsort(descending=True).tolist()[: RANKS - LIARS] == list(range(6))
