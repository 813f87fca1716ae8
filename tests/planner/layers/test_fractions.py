"""Fractions of weights in shards: their price lies between, and the search takes them where they pay."""

import json
import re
from itertools import pairwise, product

import pytest
from msgspec.structs import replace

from plait.api.plans.plan_object import load_plan
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.errors import FileError, UsageError
from plait.ir.files.json_files import digest, dump
from plait.ir.plan.memory_action import KEEP
from plait.ir.plan.strategy import parse_strategy
from plait.planner import PlanOptions, plan
from plait.planner.interop.galvatron_plan import to_galvatron
from plait.planner.question.candidate import Assignment, Decision
from plait.planner.question.pins import pin_all
from plait.planner.search.driver import SearchSpace

CLUSTER = load_cluster("2x1xrtx-titan@10")
STRATEGIES = ("dp=2", "zero3=2@1/4", "zero3=2@1/2", "zero3=2@3/4", "zero3=2")  # ever less memory
ASKED = PlanOptions(
    roles=("dp", "zero3"), memory_actions=("keep",), micro_batches=1, simpler_within=0
)


def traced(folder, **config):
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "llama",
                "hidden_size": 512,
                "intermediate_size": 1376,
                "vocab_size": 8000,
                "num_hidden_layers": 2,
                "num_attention_heads": 8,
                **config,
            }
        )
    )
    source = load_source(f"hf:{folder / 'config.json'}", batch=16, seq=64)
    return trace(source.model, source.batch)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Wide, of few layers: an embedding, two layers, a head."""
    return traced(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def ladder(model):
    return [plan(model, CLUSTER, replace(ASKED, pins=pin_all(strategy))) for strategy in STRATEGIES]


def test_memory_and_time_lie_between_those_of_dp_and_zero3(ladder):
    for more, less in pairwise(ladder):
        assert more.peak_bytes > less.peak_bytes
        assert more.prediction.step_seconds < less.prediction.step_seconds
        for name in ("parameters", "optimizer"):  # others depend on the moment of the peak
            parameter_bytes = [dict(made.stages[0].memory_terms)[name] for made in (more, less)]
            assert parameter_bytes[0] > parameter_bytes[1]


def every(model):
    """Every way of giving each call one of the words: seconds and peak."""
    space = SearchSpace.create(model, CLUSTER, ASKED)
    pricer, calls = space.pricer, range(len(model.calls))
    running = [i for i in calls if i not in pricer.batch_only]
    for choice in product(map(parse_strategy, STRATEGIES), repeat=len(running)):
        at = dict(zip(running, choice, strict=True))
        made = tuple(Decision(i, i + 1, at.get(i, choice[0]), KEEP) for i in calls)
        found = pricer.mixed(Assignment(made, model.batch, 1), (0, len(model.calls)))
        yield found.step_seconds, found.peak_bytes, any(s.fraction != (1, 1) for s in choice)


@pytest.mark.long
def test_the_search_takes_fractions_where_they_are_faster(model, ladder):
    """Between dp and zero3, with fractions and without them, against trying everything."""
    most, least = ladder[0].peak_bytes, ladder[-1].peak_bytes
    tried, fractions = list(every(model)), 0
    assert len(tried) == len(STRATEGIES) ** 4
    for share in range(1, 16):
        budget = least + (most - least) * share // 16
        asked = replace(ASKED, memory_bytes=budget)
        fine, coarse = (
            plan(model, CLUSTER, replace(asked, fractions=f)) for f in (ASKED.fractions, ())
        )
        fastest, without = (
            min(time for time, peak, parts in tried if peak <= budget and parts <= allowed)
            for allowed in (True, False)
        )
        assert fine.peak_bytes <= budget
        seconds = fine.prediction.step_seconds
        assert fastest * (1 - 1e-9) <= seconds <= coarse.prediction.step_seconds
        assert seconds <= fastest * 1.03  # sums over calls only estimate their worst moment
        if seconds < without * (1 - 1e-9):
            fractions += 1
            assert any(strategy.fraction != (1, 1) for strategy in fine.strategies)
    assert fractions >= 4


def test_what_shares_a_parameter_takes_one_fraction(tmp_path):
    tied, cluster = traced(tmp_path, tie_word_embeddings=True), load_cluster("8x1xrtx-titan@10")
    whole, sharded = (
        plan(tied, cluster, replace(ASKED, pins=pin_all(strategy)))
        for strategy in ("dp=8", "zero3=8")
    )
    room, fractions = whole.peak_bytes - sharded.peak_bytes, 0
    ends = [i for i, call in enumerate(tied.calls) if call.function in ("entry", "exit")]
    for share in range(22, 29, 2):
        asked = replace(ASKED, memory_bytes=sharded.peak_bytes + room * share // 32)
        fine, coarse = (
            plan(tied, cluster, replace(asked, fractions=f)) for f in (ASKED.fractions, ())
        )
        assert fine.prediction.step_seconds <= coarse.prediction.step_seconds
        first, last = (fine.strategy_of(fine.layers_of(i)) for i in ends)
        assert first == last
        fractions += first.fraction != (1, 1)
    assert fractions


def test_layers_that_are_many_take_whole_weights(tmp_path):
    deep = traced(tmp_path, num_hidden_layers=12, vocab_size=500)
    whole, sharded = (
        plan(deep, CLUSTER, replace(ASKED, pins=pin_all(strategy)))
        for strategy in ("dp=2", "zero3=2")
    )
    room = whole.peak_bytes - sharded.peak_bytes
    for share in (3, 8, 13):
        answer = plan(
            deep, CLUSTER, replace(ASKED, memory_bytes=sharded.peak_bytes + room * share // 16)
        )
        for layers in answer.layers:
            rare = "decoder" not in answer.shardings[layers.sharding].function
            assert answer.strategy_of(layers).fraction == (1, 1) or rare
        assert len(answer.strategies) > 1


def test_galvatron_has_no_fractions(ladder):
    with pytest.raises(UsageError, match="zero3=2@1/2"):
        to_galvatron(ladder[2])


def test_a_plan_file_keeps_its_fractions_and_refuses_what_is_none(ladder, tmp_path):
    file = tmp_path / "plan.json"
    text = dump(ladder[2], "plait/plan").decode()
    file.write_text(text)
    assert digest(load_plan(str(file))) == digest(ladder[2])
    assert '"fraction":[1,2]' in "".join(text.split())
    for wrong in ("2, 4", "3, 2", "0, 1", "-1, 2", "1, 0"):
        file.write_text(re.sub(r'"fraction": \[\s*1,\s*2\s*\]', f'"fraction": [{wrong}]', text))
        with pytest.raises(FileError, match="fraction"):
            load_plan(str(file))
    file.write_text(text.replace('"zero3"', '"zero2"'))
    with pytest.raises(FileError, match="fraction"):
        load_plan(str(file))
