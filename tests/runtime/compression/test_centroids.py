"""Rows to experts that travel as centroids of nearly equal ones (LSH-MoE)."""

import json
from pathlib import Path

import pytest
import torch

from plait.ir.compression.check import violations
from plait.ir.compression.registry import ROW_PROGRAMS, algorithm
from plait.runtime.comm.sharded_operators import ShardedOperators
from plait.runtime.compression.centroids import RowCentroids
from plait.tests.ranks import launch

EXPERTS, WIDTH, HIDDEN, TOKENS = 4, 8, 12, 64
FACTORS = ((EXPERTS, 1, ("ep",)),)


class OneRank(ShardedOperators):
    """Dispatch along an axis of one rank."""

    def __init__(self, program=None) -> None:
        self.sizes, self.coordinates = {"ep": 1}, {"ep": 0}
        self.centroids = {} if program is None else {"ep": RowCentroids(program)}

    def exchange_rows(self, x, axis, sent, received):
        return x.clone()


@pytest.fixture
def values():
    torch.manual_seed(0)
    shapes = (TOKENS, WIDTH), (TOKENS, 2), (EXPERTS, 2 * HIDDEN, WIDTH), (EXPERTS, WIDTH, HIDDEN)
    x, gate, gate_up, down = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    choice = torch.stack([torch.randperm(EXPERTS)[:2] for _ in range(TOKENS)])
    return x, choice, gate.softmax(-1), gate_up / 3, down / 3


def run(ranks, x, choice, gate, gate_up, down):
    return ranks.experts(x, choice, gate, gate_up, down, "silu", EXPERTS, FACTORS, over=("ep",))


def test_the_program_keeps_the_laws_and_takes_a_rate():
    program = ROW_PROGRAMS["lsh-moe.rows"]
    assert not list(violations(program))
    assert ROW_PROGRAMS["lsh-moe:rate=8.rows"].stages[0].ratio == 8
    lossy = algorithm("lsh-moe").programs[0].stages[:2]
    assert "AddDifference" in next(
        violations(type(program)("bare", "rows", "exchange_rows", lossy))
    )


def test_rows_that_are_alone_are_exact_and_others_off_by_their_difference(values):
    """Experts of one token give what they give without; nearer rows give nearer results."""
    x, choice, gate, *weights = values
    exact, ranks = OneRank(), OneRank(ROW_PROGRAMS["lsh-moe:rate=2.rows"])
    few = torch.zeros(TOKENS, 1, dtype=torch.long)
    few[[5, 9, 20], 0] = torch.tensor([1, 2, 3])
    plain, compressed = (run(r, x, few, gate[:, :1], *weights) for r in (exact, ranks))
    assert plain[few[:, 0] > 0].equal(compressed[few[:, 0] > 0])
    assert not plain.allclose(compressed)
    assert len(ranks.centroids["ep"](x, choice, EXPERTS).rows) <= choice.numel() / 2
    errors = []
    for spread in (1e-1, 1e-2, 1e-3):
        noisy = torch.stack([x[0], -x[0]]).repeat(TOKENS // 2, 1) + spread * torch.randn_like(x)
        same = choice[:2].repeat(TOKENS // 2, 1)
        plain, compressed = (run(r, noisy, same, gate, *weights) for r in (exact, ranks))
        errors.append(float((plain - compressed).norm()))
    assert errors[0] > 5 * errors[1] > 25 * errors[2] > 0


def test_errors_are_bounded_by_what_experts_do_to_differences(values):
    """By the norm of the expert's Jacobian less the identity, times the distance from the centroid."""
    x, _, _, gate_up, down = values
    x = x[:8].repeat(8, 1) + 1e-4 * torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    choice, gate = (
        torch.zeros(TOKENS, 1, dtype=torch.long),
        torch.ones(TOKENS, 1, dtype=torch.float64),
    )
    ranks = OneRank(ROW_PROGRAMS["lsh-moe:rate=2.rows"])
    near = ranks.centroids["ep"](x, choice, EXPERTS)
    error = run(ranks, x, choice, gate, gate_up, down) - run(
        OneRank(), x, choice, gate, gate_up, down
    )

    def expert(row):
        gate_row, up_row = (gate_up[0] @ row).chunk(2)
        return down[0] @ (torch.nn.functional.silu(gate_row) * up_row)

    for token in range(TOKENS):
        centroid = near.rows[near.place[token]]
        jacobian = torch.autograd.functional.jacobian(expert, centroid)
        slope = torch.linalg.matrix_norm(jacobian - torch.eye(WIDTH, dtype=torch.float64), 2)
        assert error[token].norm() <= 1.01 * slope * (x[token] - centroid).norm() + 1e-12


def test_gradients_are_those_of_what_runs(values):
    """By differences of the compressed forward, along random directions."""
    x, choice, gate, *weights = values
    ranks = OneRank(ROW_PROGRAMS["lsh-moe.rows"])
    upper = torch.randn_like(x)
    gradients = ranks.experts_backward(
        upper, x, choice, gate, *weights, "silu", EXPERTS, FACTORS, over=("ep",)
    )
    arguments = [x, gate, *weights]
    for number, gradient in enumerate(gradients):
        step = 1e-6 * torch.randn_like(arguments[number])
        ends = []
        for sign in (1, -1):
            moved = list(arguments)
            moved[number] = moved[number] + sign * step
            ends.append((run(ranks, moved[0], choice, *moved[1:]) * upper).sum())
        change = (ends[0] - ends[1]) / 2
        assert float(change) == pytest.approx(float((gradient * step).sum()), rel=1e-5)


@pytest.mark.ranks
@pytest.mark.long
def test_a_network_learns_from_centroids(tmp_path) -> None:
    """Beside the eager module with its own AdamW: fewer bytes travel, the loss falls nearly as far."""
    out = tmp_path / "centroids.json"
    worker = Path(__file__).with_name("centroids_worker.py")
    launch(4, [str(worker), str(out)], timeout_seconds=600)
    rows = json.loads(out.read_text())
    eager = rows["eager"]["losses"]
    assert rows["none"]["losses"] == pytest.approx(eager, rel=1e-9)
    fall = eager[0] - eager[-1]
    assert fall > 0.9 * eager[0]
    for name, rate, rest in (("lsh-moe", 5, 0.04), ("lsh-moe:rate=2", 2, 0.02)):
        row = rows[name]
        assert row["losses"][-1] - eager[-1] < rest * fall
        assert row["sent_bytes"] < rows["none"]["sent_bytes"] / rate
