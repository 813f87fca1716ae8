"""A small language model on text of a grammar: losses with compression against losses without."""

from functools import partial

import pytest
import torch
from msgspec.structs import replace

from plait.ir.compression.identity import uncompressed
from plait.ir.compression.registry import algorithm
from plait.runtime.compression.optimizers.registry import OPTIMIZERS
from plait.runtime.compression.threads import run_ranks
from plait.tests.runtime.compression.language import Corpus, train
from plait.tests.sampling import some_rows

RATE = 3e-3


def loss(chosen, corpus, steps, seed, rate=RATE, **options):
    """Of rank 0's weights on held-out text, after two nodes of two ranks trained."""
    kind = OPTIMIZERS[chosen.optimizer]

    def make(parameters, levels):
        return kind(parameters, levels, rate, program=chosen, small_bytes=0, **options)

    results = run_ranks(partial(train, make=make, corpus=corpus, steps=steps, seed=seed), 2, 2)
    if not chosen.late:  # those predict on every rank where it would go
        for _, weights in results[1:]:
            assert all(torch.equal(w, results[0][1][name]) for name, w in weights.items())
    return results[0][0]


def worse(name, corpus, steps, seed=7, **options):
    """By which part the loss is higher with compression."""
    found = algorithm(name)
    plain = replace(found, programs=tuple(uncompressed(p) for p in found.programs))
    exact = loss(plain, corpus, steps, seed, **options)
    return loss(found, corpus, steps, seed, **options) / exact - 1


@pytest.mark.parametrize(
    ("name", "most", "options"),
    some_rows([("sdp4bit", 0.02, {}), ("1-bit-adam", 0.05, {"warmup": 40})], 2),
)
def test_a_few_steps_lose_little(name, most, options):
    torch.set_num_threads(1)
    assert worse(name, Corpus(40_000), 60, **options) < most


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "most", "seed"),
    [
        ("sdp4bit", 0.005, 7),
        ("sdp4bit", 0.005, 8),
        ("sdp4bit", 0.005, 9),
        ("1-bit-adam", 0.02, 7),
        ("1-bit-adam", 0.02, 8),
        ("1-bit-adam", 0.02, 9),
        ("zero++", 0.01, 7),
        ("error-feedback", 0.01, 7),
        ("eight-bits", 0.002, 7),
        ("bf16", 0.002, 7),
    ],
)
def test_three_hundred_steps_lose_little(name, most, seed):
    torch.set_num_threads(1)
    assert worse(name, Corpus(200_000), 300, seed) < most


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "most", "options"),
    [
        ("0/1-adam:warmup=100,every=1,doubles=50,most=8", 0.08, {}),
        ("1-bit-lamb:warmup=100", 0.03, {}),
        ("1-bit-adam:warmup=100", 0.02, {"bias_correction": False}),
    ],
)
def test_two_hundred_steps_under_settings_lose_little(name, most, options):
    torch.set_num_threads(1)
    assert worse(name, Corpus(200_000), 200, **options) < most


@pytest.mark.long
def test_late_gradients_train_with_their_compensation_and_not_without():
    torch.set_num_threads(1)
    corpus = Corpus(200_000)

    def late(name, **options):
        return loss(algorithm(name), corpus, 200, 7, rate=0.1, **options)

    at_once = late("stale-sgd:delay=0")
    assert late("stale-sgd") < 1.2 * at_once
    assert late("stale-sgd", compensate="none") > 2 * at_once
