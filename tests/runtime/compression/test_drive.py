"""Exchanges that are under way at once: in order, and each is computed while others travel."""

from threading import Event

import pytest
import torch

from plait.runtime.compression.drive import overlap_exchanges, run_exchanges

CPU = torch.device("cpu")


def test_results_and_messages_keep_their_order():
    sent = []

    def work(number, messages):
        total = torch.zeros(())
        for message in range(messages):
            total = total + (yield lambda m=message: sent.append((number, m)) or torch.ones(()))
        return total + 10 * number

    counts = (1, 2, 0, 2, 1)
    found = list(run_exchanges((work(n, c) for n, c in enumerate(counts)), CPU))
    assert [float(x) for x in found] == [10 * n + c for n, c in enumerate(counts)]
    first = list(sent)
    sent.clear()
    list(run_exchanges((work(n, c) for n, c in enumerate(counts)), CPU))
    assert sent == first
    assert sorted(sent) == [(n, m) for n, c in enumerate(counts) for m in range(c)]


def test_the_second_is_computed_while_the_first_travels():
    computed = Event()

    def first():
        return (yield lambda: torch.tensor(computed.wait(10)))

    def second():
        computed.set()
        return (yield lambda: torch.tensor(True))

    assert all(overlap_exchanges([first(), second()]))


def test_a_failure_is_not_lost():
    def work():
        return (yield lambda: torch.ones(2) + torch.ones(3))

    with pytest.raises(RuntimeError):
        list(overlap_exchanges([work(), work()]))
