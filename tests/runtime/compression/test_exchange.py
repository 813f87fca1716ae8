"""Exchanges: what arrives, on which ranks alike, in how many bytes, and what is kept between steps."""

import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from plait.ir.compression.identity import uncompressed
from plait.ir.compression.registry import PROGRAMS
from plait.ir.compression.variants import with_reference
from plait.ir.errors import MismatchError, UsageError
from plait.runtime.compression.exchange import BucketOptions, CompressedCollective
from plait.runtime.compression.message import Message
from plait.runtime.compression.threads import run_ranks
from plait.tests.ranks import launch

NEVER_SMALL = BucketOptions(small_bytes=0)
HERE = Path(__file__).parent
SIZES = ((4, 1), (1, 4), (2, 2))
COLLECTIVES = [name for name, program in PROGRAMS.items() if program.collective != "send"]
MEANS = [  # programs whose result is an average, on one step, up to rounding
    name
    for name in COLLECTIVES
    if PROGRAMS[name].payload != "weights"
    and not any(part in name for part in ("random", "cser", "detached", "1-bit-adam", "tp"))
    and not any(part in name for part in ("trimmed", "median", "phocas", "krum", "zeno"))
]
UNBIASED = [  # those that lose nothing in the long run
    name
    for name in MEANS
    if PROGRAMS[name].payload != "activations"
    and name not in ("zero++.gradients", "bf16.gradients")
]


@pytest.mark.ranks
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(("ranks", "inner"), [(4, 2), pytest.param(4, 1, marks=pytest.mark.long)])
def test_gloo_ranks_agree_and_send_what_was_predicted(ranks, inner, tmp_path):
    worker = [str(HERE / "exchange_worker.py"), str(inner), str(tmp_path / "kernels")]
    outputs = launch(ranks, worker, timeout_seconds=240)
    assert [o.split() for o in outputs] == [["done", str(rank)] for rank in range(ranks)]


def gradients(elements, seed=0):
    """Four ranks' gradients: something in common, something of their own."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(elements, generator=draw)
    return [common + 0.3 * torch.randn(elements, generator=draw) for _ in range(4)]


def once(program, rows, levels, steps=1, **options):
    """The results of equal steps, and the exchange."""
    exchange = CompressedCollective(
        program, levels, rows[0].numel(), BucketOptions(small_bytes=0, **options)
    )
    mine, results = rows[levels.all.index], []
    for _ in range(steps):
        if program.collective == "all_reduce":
            results.append(exchange.all_reduce(mine, torch.arange(4.0)))
        else:
            results.append(exchange.reduce_scatter(mine.view(levels.all.size, -1)))
    return results, exchange


def whole(results, program, step):
    shards = [r[0][step] for r in results]
    return shards[0] if program.collective == "all_reduce" else torch.cat(shards)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", MEANS)
def test_nothing_lost_is_the_mean(name, sizes):
    rows, program = gradients(20_004), uncompressed(PROGRAMS[name])
    total = PROGRAMS[name].payload == "activations"
    mean = torch.stack(rows).double().mean(0).float() * (4 if total else 1)
    result = whole(run_ranks(partial(once, program, rows), *sizes), program, 0)
    torch.testing.assert_close(result, mean, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", UNBIASED)
def test_what_is_lost_comes_back_or_cancels(name):
    """The mean of many results is the mean: errors are fed back, or roundings have none."""
    program, steps = PROGRAMS[name], 40
    rows = gradients(4_096)
    mean = torch.stack(rows).mean(0)
    results = run_ranks(partial(once, program, rows, steps=steps), 2, 2)
    values = [whole(results, program, step) for step in range(steps)]
    one = (values[0] - mean).norm() / mean.norm()
    many = (torch.stack(values).mean(0) - mean).norm() / mean.norm()
    assert many <= max(0.35 * float(one), 1e-6)


@pytest.mark.parametrize("name", ["sdp4bit.gradients", "error-feedback.gradients"])
def test_sums_instead_of_means(name):
    rows, program = gradients(8_192), PROGRAMS[name]
    results = run_ranks(partial(once, program, rows, total=True), 2, 2)
    total = torch.stack(rows).sum(0)
    assert (whole(results, program, 0) - total).norm() < 0.2 * total.norm()


def test_random_choices_are_unbiased_and_the_remainder_is_kept():
    rows = gradients(32 * 1024)
    mean = torch.stack(rows).mean(0)
    program = PROGRAMS["random-k.gradients"]
    results = run_ranks(partial(once, program, rows, steps=4), 4)
    for step in range(4):
        value = whole(results, program, step)
        assert (value != 0).sum() == 1024
        picked = value != 0
        torch.testing.assert_close(value[picked], 32 * mean[picked])
    program = PROGRAMS["random-k-feedback.gradients"]
    (first, exchange), *_ = run_ranks(partial(once, program, rows), 4)
    error = exchange.states["worker_error"]
    picked = first[0] != 0
    assert (error[picked] == 0).all()
    torch.testing.assert_close(error[~picked], rows[0][~picked])


def test_warm_up_and_small_buckets_are_exact():
    rows, program = gradients(4_096), PROGRAMS["one-bit.gradients"]
    mean = torch.stack(rows).mean(0)

    def warm(levels):
        exchange = CompressedCollective(
            program, levels, 4_096, BucketOptions(small_bytes=0, warmup=2)
        )
        return [exchange.all_reduce(rows[levels.all.index]) for _ in range(3)]

    def small(levels):
        exchange = CompressedCollective(program, levels, 4_096)
        return [exchange.all_reduce(rows[levels.all.index])], exchange.states

    values = run_ranks(warm, 4)[0]
    exact = [torch.allclose(value, mean, atol=1e-6) for value in values]
    assert exact == [True, True, False]
    (value,), states = run_ranks(small, 4)[0]
    assert torch.allclose(value, mean, atol=1e-6)
    assert states == {}


@pytest.mark.parametrize(("element", "digits"), [("fp32", 0.3), ("bf16", 0.5)])
def test_replicas_follow_weights_and_their_differences(element, digits):
    """Weights that stand still are reached, though each step has only four bits."""
    program = with_reference(PROGRAMS["sdp4bit.weights"], element)
    target, steps = torch.randn(4, 5_000), 8 if element == "fp32" else 3

    def follow(levels):
        exchange = CompressedCollective(program, levels, 5_000, NEVER_SMALL)
        exchange.replicate(torch.zeros(4, 5_000))
        return [exchange.all_gather(target[levels.all.index]).clone() for _ in range(steps)]

    results = run_ranks(follow, 2, 2)
    distances = [(value - target).norm() / target.norm() for value in results[0]]
    assert all(b < digits * a for a, b in pairwise(distances))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", ["one-bit.gradients", "1-bit-adam.momentum", "sdp4bit.weights"])
def test_states_go_into_checkpoints(name):
    program = PROGRAMS[name]

    def run(levels):
        torch.manual_seed(levels.all.index)
        data = torch.randn(6, 9_000)

        def step(exchange, x):
            gathers = program.collective == "all_gather"
            return (exchange.all_gather(x) if gathers else exchange.all_reduce(x)).clone()

        first = CompressedCollective(program, levels, 9_000, NEVER_SMALL)
        for x in data[:3]:
            step(first, x)
        saved = {k: v.clone() if torch.is_tensor(v) else v for k, v in first.state_dict().items()}
        straight = [step(first, x) for x in data[3:]]
        second = CompressedCollective(program, levels, 9_000, NEVER_SMALL)
        second.load_state_dict(saved)
        return all(torch.equal(a, step(second, x)) for a, x in zip(straight, data[3:], strict=True))

    assert all(run_ranks(run, 2, 2))


def test_states_of_another_number_of_ranks():
    """Server errors are cut anew, worker errors start anew, and other sizes are refused."""
    program, elements = PROGRAMS["1-bit-adam.momentum"], 10_000

    def resharded(exchange):
        return [s for s in exchange.pipeline.states if s.on_reshard != "reset"]

    def save(levels):
        exchange = CompressedCollective(program, levels, elements, NEVER_SMALL)
        torch.manual_seed(levels.all.index)
        exchange.all_reduce(torch.randn(elements))
        full = {s.name: exchange.full_state(s).clone() for s in resharded(exchange)}
        return full, exchange.state_dict()

    def load(levels):
        exchange = CompressedCollective(program, levels, elements, NEVER_SMALL)
        with pytest.raises(MismatchError):
            exchange.load_state_dict(residual)
        for state in resharded(exchange):
            exchange.set_full_state(state, whole[state.name])
        full = {s.name: exchange.full_state(s) for s in resharded(exchange)}
        return full, exchange.states["worker_error"]

    whole, residual = run_ranks(save, 4)[0]
    again, worker = run_ranks(load, 2)[1]
    assert whole.keys() == {"momentum", "server_error"}
    assert torch.equal(whole["server_error"], again["server_error"])
    assert torch.equal(whole["momentum"], again["momentum"])
    assert whole["server_error"].abs().sum() > 0
    assert not worker.any()


@pytest.mark.parametrize(("name", "error"), [("int8", 0.01), ("fp8", 0.04)])
def test_activations_travel_to_the_next_stage(name, error):
    x = torch.randn(3, 700) * 5
    message = Message(PROGRAMS[f"{name}-activations.send"], x.numel())
    sent = message.encode(x)
    assert sent.dtype == torch.uint8
    assert sent.numel() == message.sent_bytes < 0.31 * x.nbytes
    assert (message.decode(sent).view_as(x) - x).norm() < error * x.norm()


def test_the_wrong_call_is_explained():
    def wrong(levels):
        exchange = CompressedCollective(PROGRAMS["sdp4bit.weights"], levels, 1_000)
        with pytest.raises(UsageError, match="all_gather"):
            exchange.all_reduce(torch.zeros(1_000))
        with pytest.raises(MismatchError, match="1000"):
            exchange.all_gather(torch.zeros(999))
        with pytest.raises(UsageError, match="send"):
            Message(PROGRAMS["sdp4bit.weights"], 10)

    run_ranks(wrong, 1)
