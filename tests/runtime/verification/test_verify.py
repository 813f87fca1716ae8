"""Verdicts: what counts as the same numbers, and what is reported when they are not."""

import math

import pytest
import torch

from plait.ir.errors import VerifyError
from plait.runtime.verification.compare import Actual, compare, locate, worst
from plait.runtime.verification.reference import Wide
from plait.runtime.verification.training import Reference
from plait.runtime.verification.verify import Verdict

STATE = {"w": torch.full((3,), 2.0), "steps": torch.tensor(100)}


def compared(expected, gradients, state, loss=1.0, order=()):
    return compare(expected, Actual([loss], [gradients], state), order)


def verdict(comparison) -> Verdict:
    loss, gradient, parameter, first_wrong, _ = comparison
    return Verdict("plan", loss, *gradient, *parameter, first_wrong=first_wrong)


def test_equal_numbers_pass() -> None:
    expected = Reference([1.0], [{"w": torch.ones(3)}], STATE)
    passing = verdict(compared(expected, {"w": torch.ones(3)}, dict(STATE)))
    assert passing.passed
    assert passing.require() is passing


def test_what_rounding_of_gradients_decides_is_named_not_compared() -> None:
    gradients = {"w": torch.ones(2), "bias": torch.tensor([1e-17, -1e-17])}
    state = {"w": torch.ones(2), "bias": torch.tensor([1e-5, -1e-5])}
    expected, moved = Reference([1.0], [gradients], state), {**state, "bias": -state["bias"]}
    actual = Actual([1.0], [gradients], moved)
    assert not verdict(compare(expected, actual)).passed
    rounded = Reference([1.0], [gradients], moved)
    comparison = compare(expected, actual, (), rounded)
    assert (verdict(comparison).passed, comparison.arbitrary) == (True, ("bias",))
    steady = Reference([1.0], [gradients], state)
    assert not verdict(compare(expected, actual, (), steady)).passed


@pytest.mark.parametrize("wrong", [1.0 + 1e-8, float("nan"), float("inf")])
def test_one_wrong_number_is_found_and_named(wrong: float) -> None:
    gradients = {"v": torch.ones(3, dtype=torch.float64), "w": torch.ones(3, dtype=torch.float64)}
    expected = Reference([1.0], [gradients], {})
    made = {n: t.clone() for n, t in gradients.items()}
    made["w"][1] = wrong
    failing = verdict(compared(expected, made, {}))
    assert not failing.passed
    with pytest.raises(VerifyError, match=r"plan: DIFFERS .* at w.*gradient of w .*at \[1\]"):
        failing.require()
    assert not verdict(compared(expected, gradients, {}, loss=wrong)).passed


def test_the_first_wrong_gradient_is_that_which_backward_computes_first() -> None:
    expected = Reference([1.0], [{"first": torch.ones(2), "last": torch.ones(2)}], {})
    made = {"first": torch.full((2,), 3.0), "last": torch.full((2,), 2.0)}
    named = compared(expected, made, {}, order=("last", "first")).first_wrong
    assert named.startswith("gradient of last is off")
    assert "2 times what it should be" in named


def test_what_is_wrong_is_located() -> None:
    expected = torch.ones(4, 6, dtype=torch.float64)
    made = expected.clone()
    made[:, 3:] = 7.0
    made[2, 5] = -9.0
    assert locate(made, expected) == (
        "-9, not 1, at [2, 5]; 12 of 24 elements, all of them in [:, 3:6]"
    )
    assert locate(expected * 0, expected).endswith("24 of 24 elements; 0 times what it should be")


def test_missing_and_misshapen_tensors_are_infinitely_wrong() -> None:
    one = {"w": torch.ones(3)}
    assert worst({}, one, 1.0) == (math.inf, "w (missing)")
    assert worst({**one, "v": torch.ones(1)}, one, 1.0) == (math.inf, "v (not expected)")
    assert worst({"w": torch.ones(1)}, one, 1.0) == (math.inf, "w (shape [1], not [3])")
    assert compared(Reference([1.0], [one], {}), {}, {}).first_wrong == (
        "gradient of w (missing) in step 1"
    )


def test_noise_in_a_gradient_that_is_zero_does_not_count() -> None:
    expected = {"w": torch.ones(3, dtype=torch.float64), "bias": torch.tensor([1e-17]).double()}
    made = {**expected, "bias": torch.tensor([-3e-17]).double()}
    assert worst(made, expected, 1e-4)[0] < 1e-9
    made["bias"] = torch.tensor([1e-12]).double()
    assert worst(made, expected, 1e-4) == (pytest.approx(1e-8, rel=1e-3), "bias")


def test_a_failure_never_passes() -> None:
    assert not Verdict("p", 0.0, 0.0, "", 0.0, "", failure="rank 1: ...").passed
    assert not Verdict("p", 0.0, 0.0, "", 0.0, "", first_wrong="a mask").passed
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


def test_a_gradient_that_is_no_number_reaches_the_reader_and_fails():
    broken = Verdict.read(Verdict("p", 0.0, math.nan, "w", math.inf, "w").line())
    assert math.isnan(broken.gradient)
    assert broken.parameter == math.inf
    assert not broken.passed


def test_gradients_may_be_off_as_far_as_rounding_takes_one_process() -> None:
    def run(size: float) -> Reference:
        return Reference([1.0], [{"weight": torch.ones(4) * size}], {"weight": torch.ones(4)})

    expected, rounded = run(1.0), run(1.0 + 1e-6)
    for off, passes in ((4e-6, True), (4e-5, False)):
        actual = Actual(*run(1.0 + off)[:3])
        assert (compare(expected, actual, (), rounded).first_wrong == "") == passes
        assert compare(expected, actual).first_wrong
