"""The runner of pipeline schedules refuses what programs have no function for."""

import pytest

from plait.ir.errors import UsageError
from plait.ir.plan.interleave import build_rows, zero_bubble
from plait.runtime.execution.pipeline import verify_kinds


def test_a_schedule_with_split_backwards_is_refused():
    """A step of inputs or weights alone would otherwise run as a whole backward."""
    verify_kinds(build_rows("1f1b", 2, 4, 1))
    with pytest.raises(UsageError, match=r"stage 0 has a step '[IW]' of model chunk 0"):
        verify_kinds(zero_bubble(2, 4, 1))
