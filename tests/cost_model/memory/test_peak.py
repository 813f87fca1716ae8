"""Memory terms: what zero cuts, what waits in a pipeline, and what states lie where."""

from contextlib import suppress
from itertools import product

from msgspec.structs import replace

from plait.cost_model.communication.data_parallel import BatchAxes
from plait.cost_model.execution_model import GENERATED
from plait.cost_model.hardware import load_cluster
from plait.cost_model.memory.in_flight import InFlight, micro_batches_in_flight, undominated
from plait.cost_model.memory.peak import between_calls, memory_terms
from plait.cost_model.memory.scheduled import ChunkBytes, scheduled_in_flight, waiting_beside
from plait.ir.errors import UsageError
from plait.ir.plan.plan import Optimizer
from plait.ir.plan.schedules.interleave import as_rows, peak_in_flight
from plait.ir.plan.schedules.registry import SCHEDULES
from plait.ir.plan.schedules.table import one_f_one_b
from plait.ir.plan.strategy import parse_strategy
from plait.ir.plan.workload import PeakPoint, StageBytes

ADAM = Optimizer("adamw", 3, 4)
SAVED = 100_000
PEAK_POINTS = (
    PeakPoint("forward", SAVED, 10, 0, 800, 400),
    PeakPoint("backward", SAVED, 10, 0, 800, 400),
    PeakPoint("backward", SAVED // 10, 10, 7200, 800, 400),
    PeakPoint("accumulate", 0, 800, 7200, 800, 400),
)
STAGE = StageBytes(
    weight_bytes=8000,
    trained_bytes=8000,
    call_weight_bytes=((800, 10),),
    saved_bytes=SAVED,
    last_saved_bytes=0,
    peak_points=PEAK_POINTS,
    batch_only_bytes=0,
    batch_copy_bytes=0,
    batch_input_bytes=0,
    outgoing_bytes=0,
    incoming_bytes=0,
    item_bytes=2,
    partial_gradient_bytes={},
)
CLUSTER = load_cluster("8xh100")


def terms(strategy, stage=STAGE, execution=GENERATED, waiting=1, number=8):
    axes = BatchAxes(parse_strategy(strategy), CLUSTER)
    stages = InFlight(waiting, number)
    return dict(memory_terms([(stage, axes)], ADAM, execution, stages, CLUSTER.device))


CHUNKS = ChunkBytes(60.0, 20.0), ChunkBytes(40.0, 30.0)


def stages_in_flight(schedule, count, number):
    """What every stage has in flight; none where the schedule takes no such numbers."""
    chunks = CHUNKS[: SCHEDULES[schedule].chunks or 2]
    with suppress(UsageError):
        return [
            InFlight(
                scheduled_in_flight(schedule, count, stage, number, chunks),
                number,
                len(chunks),
                waiting_beside(schedule, count, stage, number, chunks)
                if SCHEDULES[schedule].splits
                else (),
            )
            for stage in range(count)
        ]
    return []


def test_the_fullest_of_equal_stages_is_one_that_no_other_dominates():
    axes, compared = BatchAxes(parse_strategy("zero2=8"), CLUSTER), set()
    for name, number, saved in product(SCHEDULES, (2, 3, 4, 8, 16), (0, 100, SAVED)):
        stage = replace(STAGE, saved_bytes=saved)

        def peak_bytes(in_flight, stage=stage):
            parts = [(stage, axes)]
            return sum(
                n for _, n in memory_terms(parts, ADAM, GENERATED, in_flight, CLUSTER.device)
            )

        options = stages_in_flight(name, 4, number)
        if options:
            compared.add(name)
            assert max(map(peak_bytes, undominated(options))) == max(map(peak_bytes, options))
    assert compared == set(SCHEDULES)


def test_zero_cuts_what_its_stage_says():
    for strategy, sharded_terms in (("dp=8", 0), ("zero1=8", 1), ("zero2=8", 2), ("zero3=8", 3)):
        made = terms(strategy)
        whole = {"optimizer": 48000, "gradients": 8000, "parameters": 8000}
        for place, (name, amount) in enumerate(whole.items()):
            assert made[name] == amount // (8 if place < sharded_terms else 1), (strategy, name)


def test_full_precision_gradients_take_their_bytes():
    assert terms("dp=8", execution=replace(GENERATED, gradient_item_bytes=4))["gradients"] == 16000


def test_frozen_weights_have_neither_gradients_nor_states():
    made = terms("dp=8", replace(STAGE, trained_bytes=80))
    assert (made["parameters"], made["gradients"], made["optimizer"]) == (8000, 80, 480)


def test_states_spread_over_every_axis_that_repeats_them():
    stage = replace(STAGE, partial_gradient_bytes={"cp": 8000})
    spread = replace(GENERATED, shards_replicated_states=True)
    assert terms("zero1=2,cp=4", stage)["optimizer"] == 24000
    assert terms("zero1=2,cp=4", stage, spread)["optimizer"] == 6000


def test_zero_shards_over_context_ranks_where_the_framework_does():
    joined = replace(GENERATED, shards_over=("cp",))
    sharded = BatchAxes(parse_strategy("zero3=2,cp=4"), CLUSTER, execution=joined)
    assert sharded.local_bytes(8000, "parameter") == 1000
    assert sharded.model_axes == []  # gradients are scattered over both axes at once
    assert BatchAxes(parse_strategy("dp=2,cp=4"), CLUSTER, execution=joined).degree == 1


def test_weights_stay_whole_beneath_a_pipeline_where_the_framework_keeps_them():
    whole = replace(GENERATED, whole_in_pipelines=True)
    piped = BatchAxes(parse_strategy("pp=2,zero3=4"), CLUSTER, execution=whole)
    assert piped.sharded_kinds == {"optimizer"}
    alone = BatchAxes(parse_strategy("zero3=4"), CLUSTER, execution=whole)
    assert alone.sharded_kinds == {"parameter", "gradient", "optimizer"}


def test_what_follows_the_loss_waits_once():
    stage = replace(STAGE, last_saved_bytes=SAVED // 2)
    assert terms("dp=8", stage, waiting=5)["activations"] == 5 * SAVED // 2 + SAVED // 2


def test_gradients_come_when_values_have_gone():
    """All micro-batches wait: no gradient is there before the first backward."""
    made = terms("dp=8", number=1)
    assert (made["gradients"], made["activations"]) == (0, SAVED)
    light = replace(
        STAGE, saved_bytes=100, peak_points=(PeakPoint("backward", 100, 10, 0, 800, 400),)
    )
    for number in (1, 8):
        assert terms("dp=8", light, number=number)["gradients"] == 8000


def test_parts_wait_or_have_their_gradients():
    """Beside a part at work others have values of some calls and gradients of the rest, never both."""
    axes = BatchAxes(parse_strategy("dp=8"), CLUSTER)
    alone, twice = (
        dict(memory_terms([(STAGE, axes)] * n, ADAM, GENERATED, InFlight(1, 1), CLUSTER.device))
        for n in (1, 2)
    )
    assert (twice["gradients"], twice["activations"]) == (0, 2 * alone["activations"])
    assert between_calls(STAGE, axes, GENERATED, InFlight(1, 2)).gradients == 8000


def test_updated_weights_may_be_the_peak():
    light = replace(
        STAGE, saved_bytes=100, peak_points=(PeakPoint("forward", 100, 10, 0, 800, 400),)
    )
    made = terms("zero1=8", light)
    assert (made["activations"], made["gradients"]) == (0, 0)  # the forward has begun
    assert made["communication"] == 2 * 8000  # as they arrive and as they are copied


def test_waiting_micro_batches_are_the_schedules():
    for stages in (1, 3, 6):
        for micro_batches in (1, 4, 9):
            table = as_rows(one_f_one_b(stages, micro_batches))
            for stage in range(stages):
                after = stages - 1 - stage
                found = micro_batches_in_flight(after, stages, micro_batches, 1)
                assert found == peak_in_flight(table, stage)


def test_interleaving_waits_longer():
    """p = 4, v = 2: the first stage warms up with 6 + 4 chunks and holds one more."""
    assert micro_batches_in_flight(3, 4, 64, 2) == 11 / 2
    assert micro_batches_in_flight(3, 4, 2, 2) == 2


def test_host_memory_is_not_endless():
    assert "beyond host memory" not in terms("dp=8", replace(STAGE, host_bytes=10**9))
    beyond = terms("dp=8", replace(STAGE, host_bytes=10**9), waiting=1000.0, number=1000)
    assert beyond["beyond host memory"] > CLUSTER.device.memory_bytes
