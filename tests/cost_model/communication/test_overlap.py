"""Side by side is never faster than the longer part nor slower than one after the other."""

import pytest

from plait.cost_model.communication.overlap import exposed_seconds, overlapped_seconds

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
