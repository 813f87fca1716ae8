"""What is compressed and where: on slow links what suits the optimizer, on fast links nothing."""

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.compression.registry import PROGRAMS
from plait.ir.errors import UsageError
from plait.planner import PlanOptions, plan
from plait.planner.compression.collectives import QUALITIES
from plait.planner.question.pins import pin_all

LINK = 'kind = "{kind}"\n[[level]]\nname = "link"\nsize = 4\ngb_per_s = {rate}\nlatency_us = {latency}\n'


@pytest.fixture(scope="module")
def model():
    """Four megabytes of weights in each of four layers."""
    layers = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(4)))
    batch = torch.empty(1 << 16, 1024, device="meta")
    return trace(layers, batch, lambda output, batch: output.square().mean())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = (nn.Linear(*size, bias=False) for size in ((512, 2048), (2048, 512)))

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


@pytest.fixture(scope="module")
def blocks():
    """Two products each: the second sums over ranks that the first was split for."""
    batch = torch.empty(1 << 14, 512, device="meta")
    layers = nn.Sequential(*(Block() for _ in range(4)))
    return trace(layers, batch, lambda output, batch: output.square().mean())


@pytest.fixture(scope="module")
def clusters(tmp_path_factory):
    """Four devices on 1 Gbit/s Ethernet, and on NVLink."""
    folder = tmp_path_factory.mktemp("clusters")
    loaded = {}
    for name, rate, latency in (("ethernet", 0.119, 50), ("nvlink", 450, 3)):
        file = folder / f"{name}.toml"
        file.write_text(LINK.format(kind="h100", rate=rate, latency=latency))
        loaded[name] = load_cluster(str(file))
    return loaded


def chosen(model, cluster, quality="safe", optimizer="adamw", roles=("dp", "zero1")):
    options = PlanOptions(compress="auto", quality=quality, optimizer=optimizer, roles=roles)
    made = plan(model, cluster, options)
    return {c.program for c in made.compression}, made


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_nothing_is_compressed_on_a_fast_link(model, clusters, quality, optimizer):
    programs, _ = chosen(model, clusters["nvlink"], quality, optimizer)
    assert programs == set()


def test_four_bits_both_ways_on_a_slow_link(model, clusters):
    programs, made = chosen(model, clusters["ethernet"])
    assert programs >= {"sdp4bit.gradients", "sdp4bit.weights"}
    plain = plan(model, clusters["ethernet"], PlanOptions(roles=("dp", "zero1")))
    assert made.prediction.step_seconds < plain.prediction.step_seconds / 4


def test_carried_errors_are_for_linear_optimizers(model, clusters):
    programs, _ = chosen(model, clusters["ethernet"], optimizer="sgd", roles=("dp",))
    assert programs == {"one-bit.gradients"}
    programs, _ = chosen(model, clusters["ethernet"], roles=("dp",))
    assert programs == {"dithering.gradients"}


@pytest.mark.parametrize(
    ("role", "quality", "expected", "part"),
    [
        ("zero2", "safe", {"sdp4bit.gradients", "sdp4bit.weights"}, 0.25),
        ("zero3", "safe", {"sdp4bit.gradients"}, 0.75),  # two of three collectives are exact
        ("zero3", "all", {"zero++.gradients", "zero++.weights"}, 0.35),
    ],
)
def test_what_travels_call_by_call_keeps_nothing_between(
    model, clusters, role, quality, expected, part
):
    """A replica of weights that zero3 cuts would be all that it saves."""
    programs, plan_chosen = chosen(model, clusters["ethernet"], quality, roles=(role,))
    plain = plan(model, clusters["ethernet"], PlanOptions(roles=(role,)))
    assert plan_chosen.strategies == plain.strategies
    assert programs == expected
    assert plan_chosen.prediction.step_seconds < part * plain.prediction.step_seconds
    programs, _ = chosen(model, clusters["nvlink"], quality, roles=(role,))
    assert programs == set()


def test_lossless_loses_nothing(model, clusters):
    programs, _ = chosen(model, clusters["ethernet"], quality="lossless")
    assert programs == set()


@pytest.mark.parametrize(
    ("link", "quality", "names"),
    [("ethernet", "all", {"send"}), ("ethernet", "safe", set()), ("nvlink", "all", set())],
)
def test_values_between_stages_are_rounded_where_it_pays(model, clusters, link, quality, names):
    programs, plan_chosen = chosen(model, clusters[link], quality, roles=("pp",))
    assert {name.split(".")[1] for name in programs} == names
    if names:
        plain = plan(model, clusters[link], PlanOptions(roles=("pp",)))
        assert plan_chosen.prediction.step_seconds < plain.prediction.step_seconds / 2
    assert all((c.subject, c.role) == ("activations", "pp") for c in plan_chosen.compression)


@pytest.mark.parametrize(
    ("link", "quality", "names"),
    [("ethernet", "all", {"all_reduce"}), ("ethernet", "safe", set()), ("nvlink", "all", set())],
)
def test_sums_over_tensor_ranks_are_rounded_where_it_pays(blocks, clusters, link, quality, names):
    programs, plan_chosen = chosen(blocks, clusters[link], quality, roles=("tp",))
    assert {name.split(".")[1] for name in programs} == names
    plain = plan(blocks, clusters[link], PlanOptions(roles=("tp",)))
    if names:
        assert plan_chosen.prediction.step_seconds < plain.prediction.step_seconds / 2
    else:
        same = replace(plan_chosen, compression=(), alternatives=plain.alternatives)
        assert same == plain
    assert all((c.subject, c.role) == ("activations", "tp") for c in plan_chosen.compression)


def test_a_name_is_taken_wherever_it_fits(model, clusters):
    named = {"compress": "fp8-activations"}
    made = plan(model, clusters["nvlink"], PlanOptions(roles=("pp",), **named))
    assert [c.program for c in made.compression] == ["fp8-activations.send"]
    made = plan(model, clusters["nvlink"], PlanOptions(roles=("dp",), **named))
    assert made.compression == ()
    with pytest.raises(UsageError, match="an optimizer itself"):
        plan(model, clusters["nvlink"], PlanOptions(compress="1-bit-adam"))


def test_robust_rules_are_taken_by_name_alone(model, clusters):
    asked = PlanOptions(compress="trimmed-mean:drop=1", pins=pin_all("dp=4"))
    robust = plan(model, clusters["ethernet"], asked)
    assert [c.program for c in robust.compression] == ["trimmed-mean:drop=1.gradients"]
    automatic, _ = chosen(model, clusters["ethernet"], quality="all")
    assert not any(PROGRAMS[name].robust for name in automatic)


@pytest.mark.parametrize(
    ("compress", "pins", "why"),
    [
        ("zeno", "dp=4", "validation data"),
        ("trimmed-mean:drop=2", "dp=4", "pin dp over more ranks"),
        ("median", "zero1=4", "pin dp"),
    ],
)
def test_robust_rules_that_would_not_hold_are_refused(model, clusters, compress, pins, why):
    with pytest.raises(UsageError, match=why):
        plan(model, clusters["ethernet"], PlanOptions(compress=compress, pins=pin_all(pins)))
