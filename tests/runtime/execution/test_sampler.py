"""Every sample is seen once per epoch, wherever a run was interrupted."""

from collections import Counter
from itertools import islice

import pytest

from plait.ir.errors import UsageError
from plait.runtime.execution.sampler import GlobalBatchSampler


def test_a_run_in_parts_sees_what_one_run_sees() -> None:
    whole = [i for batch in islice(GlobalBatchSampler(10, 4, seed=3), 10) for i in batch]
    parts, number = [], 0
    for batches, size in ((2, 4), (1, 8), (4, 5), (4, 1)):
        sampler = GlobalBatchSampler(10, size, start=number, seed=3)
        parts += [i for batch in islice(sampler, batches) for i in batch]
        number = len(parts)
    assert parts == whole
    assert Counter(whole) == dict.fromkeys(range(10), 4)
    assert whole[:10] != whole[10:20]
    assert next(iter(GlobalBatchSampler(3, 2, start=1, shuffle=False))) == [1, 2]


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(UsageError, match="from 0 samples"):
        GlobalBatchSampler(0, 4)
