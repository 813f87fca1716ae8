"""Codes, noise and reductions against what torch, the standard and arithmetic say."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.ir.compression.message_format import MessageFormat
from plait.ir.compression.stage import Quantize, Reduce
from plait.runtime.compression.backends.codes import decode, encode, fold, pack, unpack
from plait.runtime.compression.backends.philox import philox, uniform
from plait.runtime.compression.backends.reference import hadamard
from plait.runtime.compression.reduce import reduce, sort


def test_philox_gives_the_published_numbers():
    """Known answers of Random123 for counters and keys of zeros and of ones."""
    zeros = philox(0, torch.tensor([0]), 0)
    assert [int(number) for number in zeros] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_noise_is_uniform_and_differs_by_step_and_seed():
    noise = uniform(1, 1000, 128, 5, torch.device("cpu")).double()
    assert 0 <= noise.min() <= noise.max() < 1
    sigma = (1 / 12 / noise.numel()) ** 0.5
    assert abs(noise.mean() - 0.5) < 4 * sigma
    for other in (uniform(2, 1000, 128, 5, noise.device), uniform(1, 1000, 128, 6, noise.device)):
        assert (other == noise).double().mean() < 1e-3
        assert (
            abs(torch.corrcoef(torch.stack([noise.flatten(), other.double().flatten()]))[0, 1])
            < 0.02
        )


@given(bits=st.sampled_from([1, 2, 4, 8]), group=st.sampled_from([16, 128, 2048]))
def test_packing_keeps_codes(bits, group):
    format = MessageFormat(bits, group)
    codes = torch.randint(0, 1 << bits, (3, 2 * format.tile))
    packed = pack(format, codes)
    assert packed.shape == (3, format.codes_bytes(2 * format.tile))
    assert torch.equal(unpack(format, packed), codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_stochastic_rounding_has_no_bias(bits):
    format, quantize = MessageFormat(bits, 128), Quantize(bits, "stochastic")
    x = torch.linspace(-format.largest, format.largest, 512).repeat(64, 1)
    rounds = [
        decode(format, encode(quantize, format, x, uniform(3, 64, 512, step, x.device)))
        for step in range(20)
    ]
    found = torch.stack(rounds).double()
    assert (found - x).abs().max() < 1 + 1e-6
    sigma = 0.5 / (20 * 64) ** 0.5
    assert (found.mean((0, 1)) - x[0]).abs().max() < 5 * sigma


def test_e4m3_is_the_standard_format():
    format = MessageFormat(8, 128, "e4m3")
    finite = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F])
    standard = finite.to(torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(decode(format, finite), standard)
    x = torch.cat([torch.randn(20_000) * s for s in (1e-3, 0.1, 10, 100)]).clamp(-448, 448)
    codes = encode(Quantize(8, codes="e4m3"), format, x, None)
    assert torch.equal(codes, x.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int64))


def test_a_transform_twice_is_a_factor_and_it_is_sylvester():
    x = torch.randn(64, 128, dtype=torch.float64)
    for block in (1, 2, 16, 32, 128):
        torch.testing.assert_close(hadamard(hadamard(x, block), block), block * x)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(5):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    torch.testing.assert_close(hadamard(x, 32), (x.view(-1, 32) @ matrix).view_as(x))


def test_folding_adds():
    x = torch.randn(10, 1024, dtype=torch.float64)
    torch.testing.assert_close(fold(x), x.sum(1))


@pytest.mark.parametrize("ranks", range(1, 9))
def test_sorting_networks_sort_every_order(ranks):
    orders = torch.tensor(list(itertools.islice(itertools.permutations(range(ranks)), 5000))).T
    values = sort([row.float() for row in orders], [row.float() for row in orders])
    assert all((value == place).all() for place, value in enumerate(values))


@pytest.mark.parametrize(("ranks", "drop"), [(4, 1), (5, 2), (7, 1)])
def test_robust_rules_by_their_definitions(ranks, drop):
    values = torch.randn(ranks, 500, dtype=torch.float64)
    ordered = values.sort(0).values
    trimmed = ordered[drop : ranks - drop].mean(0)
    near = (values - trimmed).abs().sort(0).indices[: ranks - drop]
    rules = {
        "trimmed_mean": trimmed,
        "median": values.quantile(0.5, 0),
        "phocas": values.gather(0, near).mean(0),
        "mean": values.mean(0),
        "sum": values.sum(0),
    }
    for rule, expected in rules.items():
        torch.testing.assert_close(reduce(Reduce(rule, drop), values), expected)
