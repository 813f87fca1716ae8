"""Side by side is never faster than the longer part nor slower than one after the other."""

import pytest

from plait.cost_model.communication.exchange_ends import (
    CallExchange,
    alone_seconds,
    bucket_messages,
)
from plait.cost_model.communication.overlap import exposed_seconds, overlapped_seconds
from plait.cost_model.execution_model import ExecutionModel, execution_model_files

TIMES = (0.0, 1e-3, 0.3, 1.0, 7.0)


@pytest.mark.parametrize("compute", TIMES)
@pytest.mark.parametrize("communication", TIMES)
def test_bounds(compute, communication):
    both = overlapped_seconds(compute, communication)
    assert max(compute, communication) <= both <= compute + communication
    assert 0 <= exposed_seconds(compute, communication) <= communication


def test_more_communication_is_never_less_exposed():
    shown = [exposed_seconds(1.0, t) for t in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert shown == sorted(shown)
    assert shown[1] > 0


def test_the_first_calls_of_a_framework_exchange_beside_nothing():
    calls = [CallExchange(1, 3.0, 1e6), CallExchange(32, 0.5, 1e5), CallExchange(1, 7.0, 1e9)]
    assert alone_seconds(calls, ExecutionModel(calls_alone=2), 0) == 3.5
    assert alone_seconds(calls, ExecutionModel(), 0) == 0.0
    assert alone_seconds(calls, ExecutionModel(exposes_ends=True), 10**6) == 3.0 + 7.0


def test_buckets_grow_with_the_ranks_that_share_them():
    execution = ExecutionModel(bucket_elements=(40, 1))
    assert [bucket_messages(execution, 400, ranks) for ranks in (8, 80, 800)] == [10, 5, 1]
    assert bucket_messages(ExecutionModel(), 400, 8) == 0
    models = [file.execution() for file in execution_model_files().values()]
    assert any(model.bucket_elements for model in models)
