"""Verdicts: what counts as the same numbers, and what is reported when they are not."""

import math

import pytest
import torch

from plait.ir.errors import VerifyError
from plait.runtime.verification.reference import Reference, Wide
from plait.runtime.verification.verify import Verdict, compare, worst

STATE = {"w": torch.full((3,), 2.0), "steps": torch.tensor(100)}


def test_equal_numbers_pass() -> None:
    expected = Reference([1.0], {"w": torch.ones(3)}, STATE)
    verdict = compare("p", expected, [1.0], {"w": torch.ones(3)}, dict(STATE), 0.0)
    assert verdict.passed
    assert verdict.require() is verdict


@pytest.mark.parametrize("wrong", [1.0 + 1e-8, float("nan"), float("inf")])
def test_one_wrong_number_is_found_and_named(wrong: float) -> None:
    gradients = {"v": torch.ones(3, dtype=torch.float64), "w": torch.ones(3, dtype=torch.float64)}
    expected = Reference([1.0], gradients, {})
    made = {n: t.clone() for n, t in gradients.items()}
    made["w"][1] = wrong
    verdict = compare("plan", expected, [1.0], made, {}, 0.0)
    assert not verdict.passed
    with pytest.raises(VerifyError, match=r"plan: DIFFERS .* at w"):
        verdict.require()
    assert not compare("plan", expected, [wrong], gradients, {}, 0.0).passed


def test_missing_and_misshapen_tensors_are_infinitely_wrong() -> None:
    one = {"w": torch.ones(3)}
    assert worst({}, one, 1.0) == (math.inf, "w (missing)")
    assert worst({**one, "v": torch.ones(1)}, one, 1.0) == (math.inf, "v (not expected)")
    assert worst({"w": torch.ones(1)}, one, 1.0) == (math.inf, "w (shape [1], not [3])")


def test_noise_in_a_gradient_that_is_zero_does_not_count() -> None:
    expected = {"w": torch.ones(3, dtype=torch.float64), "bias": torch.tensor([1e-17]).double()}
    made = {**expected, "bias": torch.tensor([-3e-17]).double()}
    assert worst(made, expected, 1e-4)[0] < 1e-9
    made["bias"] = torch.tensor([1e-12]).double()
    assert worst(made, expected, 1e-4) == (pytest.approx(1e-8, rel=1e-3), "bias")


def test_a_failure_never_passes() -> None:
    assert not Verdict("p", 0.0, 0.0, "", 0.0, "", failure="rank 1: ...").passed
    assert not Verdict("p").passed


def test_casts_are_lifted() -> None:
    x = torch.ones(2, dtype=torch.float64) + 1e-12
    with Wide():
        results = (
            x.float(),
            x.to(torch.float32),
            x.to(dtype=torch.bfloat16),
            x.half(),
            torch.softmax(x, 0, dtype=torch.float32),
        )
    assert all(r.dtype == torch.float64 for r in results)
    assert torch.equal(results[0], x)
