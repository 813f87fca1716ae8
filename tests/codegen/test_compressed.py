"""Programs whose gradients and weights travel compressed: they train, ranks agree, bytes are kept."""

import json
from pathlib import Path

import pytest

from plait.codegen import compile_program, write_program
from plait.cost_model.communication.data_parallel import axes_of
from plait.cost_model.communication.exchange import CompressionSubject, Exchange
from plait.cost_model.explain.overlap_terms import Calls, calls_again
from plait.cost_model.hardware import load_cluster
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.tests.paths import LLAMA
from plait.tests.ranks import launch

WORKER = Path(__file__).with_name("compressed_worker.py")
CASES = {
    "plain": ("dp=4", "none"),
    "eight": ("dp=4", "eight-bits"),
    "feedback": ("dp=4", "error-feedback"),
    "zero plain": ("zero1=4", "none"),
    "zero": ("zero1=4", "sdp4bit"),
    "zero in stages": ("pp=2,zero1=2", "sdp4bit"),
    "both": ("dp=2,zero2=2", "sdp4bit"),
    "signs": ("dp=2,zero2=2", "one-bit"),
    "rounded": ("zero1=4", "zero++"),
    "robust": ("dp=4", "trimmed-mean:drop=1"),
    "per call plain": ("zero3=4", "none"),
    "per call": ("zero3=4", "zero++"),
    "gradients per call": ("zero2=4", "sdp4bit"),
    "per call of two": ("dp=2,zero3=2", "sdp4bit"),
}
SOME = ("plain", "feedback", "zero", "signs", "per call")
MOVES = {  # checkpoints, and the cases whose plans they are loaded under
    "fewer workers": ("feedback", "signs"),
    "uncompressed": ("feedback", "plain"),
    "without errors": ("plain", "feedback"),
    "replicas": ("zero", "both"),
}


def compressed_bytes(plan):
    """What a rank of the first stage sends compressed in a step, as the plan predicts."""
    total = 0
    for share in plan.stages[0].bytes_by_strategy:
        axes, parameters = (
            axes_of(plan, share.strategy, share.bytes.item_bytes),
            share.bytes.trained_bytes,
        )
        small = share.bytes.small_tensor_bytes / parameters
        for axis in axes.replica_axes:
            cost = axes.compressed_cost(
                Exchange("gradients", "", parameters / axes.shard_count("optimizer"), [axis]),
                axis,
                small,
            )
            total += cost.sent_bytes if cost else 0
        for axis in axes.shard_axes:
            calls = share.bytes.call_weight_bytes
            gathers = (*calls, *calls_again(share, axes))
            times, once = plan.micro_batches, [(parameters, 1)]
            often: dict[CompressionSubject, tuple[Calls, int]] = {
                "gradients": (calls, times) if "gradient" in axes.sharded_kinds else (once, 1),
                "weights": (gathers, times) if "parameter" in axes.sharded_kinds else (once, 1),
            }
            for subject, (amounts, times) in often.items():
                for amount, n in amounts:
                    cost = axes.compressed_cost(Exchange(subject, "", amount, [axis]), axis, small)
                    total += cost.sent_bytes * n * times if cost else 0
    return total


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.long)])
def trained(tmp_path_factory, request, llama):
    folder = tmp_path_factory.mktemp("compressed")
    jobs, plans = [], {}
    for name, (strategy, compress) in CASES.items():
        if request.param == "some" and name not in SOME:
            continue
        options = PlanOptions(pins=pin_all(strategy), compress=compress, memory_actions=("keep",))
        plans[name] = plan(llama, load_cluster("local:4"), options)
        target = folder / name.replace(" ", "_")
        write_program(compile_program(plans[name], llama), target)
        jobs.append({"name": name, "source": LLAMA, "folder": str(target)})
    for name, (saved, loaded) in MOVES.items():
        if {saved, loaded} <= plans.keys():
            job = {"name": name, "source": LLAMA, "folder": str(folder / loaded.replace(" ", "_"))}
            jobs.append({**job, "from": saved})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    out = folder / "out.json"
    launch(4, [str(WORKER), str(folder / "jobs.json"), str(out)], timeout_seconds=300)
    return plans, json.loads(out.read_text())


@pytest.mark.ranks
def test_compressed_programs_train_like_plain_ones(trained):
    plans, rows = trained
    for name in plans:
        row = rows[0][name]
        plain = rows[0]["plain"]["losses"]
        assert row["losses"][-1] < row["losses"][0], name
        assert row["losses"] == pytest.approx(plain, rel=0.02), name
        assert row["losses"] != plain or CASES[name][1] == "none", name


@pytest.mark.ranks
def test_ranks_keep_the_same_bits(trained):
    plans, rows = trained
    for name in plans:
        stages = 2 if CASES[name][0].startswith("pp") else 1
        found = [row[name]["bits"] for row in rows]
        assert len(set(found)) == stages, name
        assert found[:2] == found[:1] * 2, name
        assert len({row[name]["norm"] for row in rows}) == 1, name


@pytest.mark.ranks
def test_a_checkpoint_goes_on_where_it_was(trained):
    plans, rows = trained
    for row in rows:
        for name in plans:
            found = row[name]
            assert found["resumed"] == found["losses"][3:], name
            assert found["resumed bits"] == found["bits"], name


@pytest.mark.ranks
def test_residuals_stay_under_another_plan(trained):
    _, rows = trained
    found = rows[0]["fewer workers"]
    assert found["owed"] > 0
    assert found["names"]
    assert found["changed"] < 1e-7 * found["owed"]


@pytest.mark.ranks
def test_errors_are_dropped_aloud_and_missing_ones_are_zero(trained):
    _, rows = trained
    (said,) = rows[0]["uncompressed"]["said"]
    assert "dropped" in said
    assert not any(row["uncompressed"]["said"] for row in rows[1:])
    assert rows[0]["without errors"]["owed"] == 0
    for name in MOVES.keys() & rows[0].keys():
        found, saved = rows[0][name], MOVES[name][0]
        assert bool(found["said"]) == (name == "uncompressed"), name
        assert found["losses"] == pytest.approx(rows[0][saved]["losses"][3:4], rel=5e-3), name


@pytest.mark.ranks
def test_sent_bytes_are_the_predicted_ones(trained):
    plans, rows = trained
    pairs = ("eight", "plain", 2), ("feedback", "plain", 2), ("zero", "zero plain", 2)
    for name, like, rounds in (*pairs, ("per call", "per call plain", 3)):
        if not {name, like} <= plans.keys():
            continue
        predicted = compressed_bytes(plans[name])
        shares = plans[name].stages[0].bytes_by_strategy
        trained_bytes = sum(share.bytes.trained_bytes for share in shares)
        retained = shares[-1].bytes.last_call_weight_bytes if rounds == 3 else 0
        # a ring's all-reduce, or both halves of it; twice the second where backward gathers anew all
        # weights but those of the last call
        plainly = round((rounds * trained_bytes - retained) * 3 / 4)
        rest = rows[0][like]["sent"] - plainly
        assert 0 <= rest < 1000, like  # of losses and counts
        assert predicted < 0.5 * plainly
        assert rows[0][name]["sent"] - rest == pytest.approx(predicted, rel=0.02), name
