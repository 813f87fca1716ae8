"""Errors saved on some ranks and loaded on others: what they owe together does not change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ir.compression.kernel import CompressionState
from plait.runtime.state.error_feedback import StateKey, _residuals, parse

WORKER, SERVER = (
    CompressionState("worker_error", 2, on_reshard="reset"),
    CompressionState("server_error", 1, on_reshard="split"),
)


class Seat:
    """A rank's place in a group, as far as errors ask."""

    def __init__(self, size, index):
        self.size, self.index = size, index


def errors(count, server, seed):
    draw = torch.Generator().manual_seed(seed)
    made = {str(StateKey("dp", "gradients", WORKER.name, rank)): None for rank in range(count)}
    made |= {str(StateKey("dp", "gradients", SERVER.name)): None} if server else {}
    return {place: torch.randn(7, generator=draw, dtype=torch.float64) for place in made}


@settings(deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([(), (WORKER,), (WORKER, SERVER)]),
    st.sampled_from(["dp", "sp"]),
    st.integers(0),
)
def test_the_sum_of_errors_is_kept(before, after, server, states, role, seed):
    saved = errors(before, server, seed % 2**32)
    total = torch.zeros(7, dtype=torch.float64)
    for rank in range(after):
        for _, by_rank, value in _residuals(states, Seat(after, rank), role, saved):
            total += value if by_rank or rank == 0 else 0
    torch.testing.assert_close(total, sum(saved.values()), rtol=0, atol=1e-12)


@given(st.integers(1, 12), st.booleans())
def test_the_same_ranks_have_their_own(count, server):
    saved = errors(count, server, 0)
    for rank in range(count):
        found = {n: v for n, _, v in _residuals((WORKER, SERVER), Seat(count, rank), "dp", saved)}
        assert found[WORKER.name] is saved[f"dp.gradients.worker_error.{rank}"]
        assert not server or torch.equal(found[SERVER.name], saved["dp.gradients.server_error"])


@pytest.mark.parametrize(
    "place",
    [StateKey("dp", "gradients", "worker_error", 11), StateKey("zero1", "weights", "replica")],
)
def test_places_are_read_as_they_are_written(place):
    assert parse(str(place)) == place


@pytest.mark.parametrize(
    "text", ["", "published", "dp.momentum.m", "dp.gradients.e.-1", "a.b.c.d.e"]
)
def test_other_texts_are_no_places(text):
    assert parse(text) is None
