"""Without loss each optimizer is its base; with it, states and schedules keep what they promise."""

from functools import partial

import pytest
import torch
from msgspec.structs import replace

from plait.ir.compression.identity import uncompressed
from plait.ir.compression.program import CompressionProgram
from plait.ir.compression.registry import ALGORITHMS, PROGRAMS, algorithm
from plait.ir.compression.stage import AllGather, Pack, Quantize, Stat
from plait.runtime.compression.exchange import BucketOptions, CompressedCollective
from plait.runtime.compression.optimizers.registry import OPTIMIZERS
from plait.runtime.compression.threads import run_ranks

FIXED = {"partial-reduce": "partial-reduce:seed=7"}  # groups that time does not change
CONTINUED = [
    FIXED.get(n, n)
    for n, a in ALGORITHMS.items()
    if a.optimizer and n != "zeno"  # it needs scores
]
SHAPES, RANKS, STEPS = ((40, 30), (17,), (300, 5)), 4, 12


def plain(name):
    found = algorithm(name)
    return replace(found, programs=tuple(uncompressed(p) for p in found.programs))


def weights():
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=draw) for shape in SHAPES]


def gradient(step, rank, shape):
    """Not a function of weights, so that small differences stay small."""
    draw = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(shape, generator=draw) + 0.5


def run(kind, levels, steps=STEPS, **options):
    """Weights after each step on one rank, and the optimizer."""
    parameters = [torch.nn.Parameter(w) for w in weights()]
    optimizer = OPTIMIZERS[kind](parameters, levels, small_bytes=0, **options)
    history = []
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = gradient(step, levels.all.index, parameter.shape)
        optimizer.step()
        history.append(torch.cat([p.detach().reshape(-1).clone() for p in parameters]))
    return history, optimizer


def trajectory(kind, steps=STEPS, **options):
    """Rank 0's weights; all ranks must have the same."""
    results = run_ranks(partial(run, kind, steps=steps, **options), 2, 2)
    for history, _ in results[1:]:
        assert torch.equal(history[-1], results[0][0][-1])
    return results[0][0]


def base(step_of, steps=STEPS):
    """Weights under `step_of(step, weights, mean gradient)` on one process."""
    x = torch.cat([w.reshape(-1) for w in weights()]).double()
    history = []
    for step in range(steps):
        rows = [torch.cat([gradient(step, r, s).reshape(-1) for s in SHAPES]) for r in range(RANKS)]
        x = step_of(step, x, torch.stack(rows).double())
        history.append(x.float())
    return history


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def adam(lr, frozen_at=10**9):
    """Adam whose variance stops moving; bias corrections as in torch."""
    m = v = 0.0

    def step_of(step, x, rows):
        nonlocal m, v
        mean = rows.mean(0)
        m = 0.9 * m + 0.1 * mean
        if step < frozen_at:
            v = 0.999 * v + 0.001 * mean**2
        root = (v / (1 - 0.999 ** min(step + 1, frozen_at))).sqrt() + 1e-8
        return x - lr * m / (1 - 0.9 ** (step + 1)) / root

    return step_of


def momentum_sgd(lr):
    m = 0.0

    def step_of(step, x, rows):
        nonlocal m
        m = 0.9 * m + rows.mean(0)
        return x - lr * m

    return step_of


@pytest.mark.parametrize(
    ("kind", "name"), [("Averaged", "one-bit"), ("Averaged", "dithering"), ("Sharded", "sdp4bit")]
)
def test_any_optimizer_on_exact_gradients(kind, name):
    close(trajectory(kind, lr=0.01, program=plain(name), base=torch.optim.Adam), base(adam(0.01)))


def lamb():
    """LAMB with weight decay 0.1."""
    sizes = [torch.Size(s).numel() for s in SHAPES]
    m = v = 0.0

    def step_of(step, x, rows):
        nonlocal m, v
        mean = rows.mean(0)
        m, v = 0.9 * m + 0.1 * mean, 0.999 * v + 0.001 * mean**2
        update = m / (v.sqrt() + 1e-8) + 0.1 * x
        parts = [
            u * (w.norm() / u.norm()).clamp(0.01, 10)
            for w, u in zip(x.split(sizes), update.split(sizes), strict=True)
        ]
        return x - 0.01 * torch.cat(parts)

    return step_of


@pytest.mark.parametrize("warmup", [3, 100])
def test_one_bit_adam_is_adam_with_a_frozen_variance(warmup):
    found = trajectory("OneBitAdam", lr=0.01, program=plain("1-bit-adam"), warmup=warmup)
    close(found, base(adam(0.01, warmup)))


def test_one_bit_adam_with_one_bit_is_adam_until_it_freezes():
    found = trajectory("OneBitAdam", lr=0.01, warmup=5)
    expected = base(adam(0.01))
    close(found[:5], expected[:5])
    assert (found[5] - expected[5]).abs().max() > 1e-3


def test_a_variance_that_settles_ends_the_warm_up():
    def settle(levels):
        _, optimizer = run("OneBitAdam", levels, 60, betas=(0.9, 0.9), warmup=1000, settles=True)
        return float(optimizer.buckets[0].values["frozen_at"])

    found = run_ranks(settle, 4)
    assert len(set(found)) == 1
    assert 10 < found[0] < 60


def test_zero_one_adam_is_adam():
    options = {"lr": 0.01, "program": plain("0/1-adam"), "doubles": 1000}
    close(trajectory("ZeroOneAdam", warmup=100, **options), base(adam(0.01)))


def test_zero_one_adam_after_the_freeze_averages_local_steps():
    """With exchanges of nothing less, local steps from one start average to the step of means."""
    options = {"lr": 0.01, "program": plain("0/1-adam"), "doubles": 1000, "betas": (0.0, 0.999)}
    each = trajectory("ZeroOneAdam", warmup=4, every=1, **options)
    fourth = trajectory("ZeroOneAdam", warmup=4, every=4, **options)
    torch.testing.assert_close(each[-1], fourth[-1], rtol=1e-4, atol=1e-5)
    apart = run_ranks(partial(run, "ZeroOneAdam", steps=6, warmup=4, every=4, **options), 4)
    assert not torch.equal(apart[0][0][-1], apart[1][0][-1])


def test_variances_move_ever_more_rarely():
    def measured(levels):
        _, optimizer = run("ZeroOneAdam", levels, 1, doubles=2, warmup=100)
        return [step for step in range(20) if optimizer._measures(step)]

    assert run_ranks(measured, 1)[0] == [0, 1, 2, 4, 6, 10, 14]


def test_one_bit_lamb_is_lamb_before_it_freezes():
    options = {"lr": 0.01, "weight_decay": 0.1}
    close(
        trajectory("OneBitLamb", program=plain("1-bit-lamb"), warmup=100, **options), base(lamb())
    )
    close(trajectory("OneBitLamb", warmup=6, **options)[:6], base(lamb())[:6])
    after = trajectory("OneBitLamb", warmup=6, **options)
    assert all(torch.isfinite(x).all() for x in after)


def test_signs_lose_nothing():
    """One bit each way back, and the weights are those of exact exchanges, bit for bit."""
    exact = trajectory("SignMomentum", every=3, program=plain("sign-momentum"))
    signs = trajectory("SignMomentum", every=3)
    assert all(torch.equal(a, b) for a, b in zip(exact[2::3], signs[2::3], strict=True))


def test_local_adaalter_with_every_step_is_adaalter():
    squares = 1.0

    def adaalter(step, x, rows):
        nonlocal squares
        x = x - 0.5 * rows.mean(0) / (squares + 1.0) ** 0.5
        squares = squares + (rows**2).mean(0)
        return x

    found = trajectory("LocalAdaAlter", every=1, program=plain("local-adaalter"))
    close(found, base(adaalter))


@pytest.mark.parametrize(
    ("kind", "name"), [("CSER", "cser"), ("ShiftedSGD", "step-ahead"), ("ShiftedSGD", "detached")]
)
def test_error_methods_without_errors_are_momentum_sgd(kind, name):
    close(trajectory(kind, lr=0.01, program=plain(name)), base(momentum_sgd(0.01)))


def test_cser_forgets_nothing():
    """The average of local models is that of exact momentum SGD, whatever was synchronised."""
    results = run_ranks(partial(run, "CSER", lr=0.01, every=2), 4)
    mean = torch.stack([history[-1] for history, _ in results]).mean(0)
    torch.testing.assert_close(mean, base(momentum_sgd(0.01))[-1], rtol=1e-3, atol=1e-4)
    assert not torch.equal(results[0][0][-1], results[1][0][-1])


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_gradients_are_taken_at_shifted_weights(shift):
    def shifted(levels):
        history, optimizer = run("ShiftedSGD", levels, lr=0.01, shift=shift, every=4)
        bucket = optimizer.buckets[0]
        error = bucket.exchanges["gradients"].states["worker_error"][: bucket.elements]
        flat = torch.cat([w.reshape(-1) for w in optimizer.weights()])
        return history[-1], flat - shift * 0.01 * error, flat

    results = run_ranks(shifted, 4)
    for weights, expected, flat in results:
        torch.testing.assert_close(weights, expected)
        assert torch.equal(flat, results[0][2])


def test_small_tensors_are_exact():
    """A bias beside a matrix travels in fp32, the matrix in one bit per element."""

    def both(levels):
        big, small = torch.nn.Parameter(torch.zeros(5000)), torch.nn.Parameter(torch.zeros(50))
        optimizer = OPTIMIZERS["Averaged"](
            [big, small],
            levels,
            1.0,
            torch.optim.SGD,
            program=algorithm("one-bit"),
            small_bytes=1000,
        )
        for parameter in (big, small):
            parameter.grad = gradient(0, levels.all.index, parameter.shape)
        optimizer.step()
        return big.detach(), small.detach()

    big, small = run_ranks(both, 4)[0]
    means = [torch.stack([gradient(0, r, t.shape) for r in range(4)]).mean(0) for t in (big, small)]
    torch.testing.assert_close(small, -means[1], rtol=0, atol=1e-6)
    assert (big + means[0]).norm() > 0.1 * means[0].norm()


def test_groups_can_be_left_uncompressed():
    def half(levels):
        first, second = (torch.nn.Parameter(torch.zeros(5000)) for _ in range(2))
        groups = [{"params": [first]}, {"params": [second], "compress": False}]
        optimizer = OPTIMIZERS["Averaged"](
            groups, levels, 1.0, torch.optim.SGD, program=algorithm("one-bit"), small_bytes=0
        )
        first.grad = second.grad = gradient(0, levels.all.index, (5000,))
        optimizer.step()
        return first.detach(), second.detach()

    rows = torch.stack([gradient(0, rank, (5000,)) for rank in range(4)])
    first, second = run_ranks(half, 4)[0]
    torch.testing.assert_close(second, -rows.mean(0), rtol=0, atol=1e-6)
    assert (first + rows.mean(0)).norm() > 0.1 * rows.mean(0).norm()


@pytest.mark.parametrize("name", CONTINUED)
def test_a_run_continues_from_its_checkpoint(name):
    algorithm_class = algorithm(name)
    options = {"program": algorithm_class}
    if algorithm_class.schedule.warmup:
        options["warmup"] = 3

    def halves(levels):
        straight, _ = run(algorithm_class.optimizer, levels, **options)
        _, first = run(algorithm_class.optimizer, levels, 6, **options)
        parameters = [
            torch.nn.Parameter(p.detach().clone()) for p in first.param_groups[0]["params"]
        ]
        second = OPTIMIZERS[algorithm_class.optimizer](parameters, levels, small_bytes=0, **options)
        second.load_state_dict(first.state_dict())
        for step in range(6, STEPS):
            for parameter in parameters:
                parameter.grad = gradient(step, levels.all.index, parameter.shape)
            second.step()
        resumed = torch.cat([p.detach().reshape(-1) for p in parameters])
        return torch.equal(resumed, straight[-1])

    assert all(run_ranks(halves, 2, 2))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_its_optimizer(name):
    algorithm_class = ALGORITHMS[name]
    if algorithm_class.optimizer:
        assert algorithm_class.optimizer in OPTIMIZERS
    else:
        payloads = {p.payload for p in algorithm_class.programs}
        assert payloads in ({"activations"}, {"rows"})


def test_quantising_weights_themselves_stalls():
    """SDP4Bit's counter-example: ternary weights never leave (1, 1), their differences reach zero."""
    direct = CompressionProgram(
        "direct",
        "weights",
        "all_gather",
        (
            Stat("absmax", 128),
            Quantize(2),
            Pack(),
            AllGather(),
            *PROGRAMS["zero++.weights"].stages[-2:],
        ),
        accepts_bias="to show that it stalls",
    )
    difference = replace(
        PROGRAMS["sdp4bit.weights"],
        stages=tuple(
            replace(s, bits=2) if isinstance(s, Quantize) else s
            for s in PROGRAMS["sdp4bit.weights"].stages
        ),
    )

    def descend(program, levels):
        exchange = CompressedCollective(program, levels, 2, BucketOptions(small_bytes=0))
        w = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
        exchange.replicate(w)
        for step in range(200):
            hot = torch.zeros(2, 2)
            hot[0, step % 2] = 1
            w = exchange.all_gather((w - 0.3 * hot * w)[levels.all.index])
        return float(w.square().sum())

    assert run_ranks(partial(descend, direct), 2)[0] == 2.0
    assert run_ranks(partial(descend, difference), 2)[0] < 1e-20
