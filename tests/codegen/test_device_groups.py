"""Programs of device groups on gloo ranks compute what the eager module does in one process."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from plait.api.check import check
from plait.codegen import compile_program, write_program
from plait.ir.errors import FileError, UsageError
from plait.ir.plan.verify import verify_plan
from plait.runtime.launch.launch import launch
from plait.runtime.verification.verify import Job, verify
from plait.tests.codegen.device_groups import SHAPES, grouped_plan
from plait.tests.codegen.sources import Sourced, sourced


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Sourced:
    return sourced("gpt2", tmp_path_factory.mktemp("gpt2"), "4, batch=12, seq=8")


def programs(made_from: Sourced, folder: Path, names) -> list[Job]:
    jobs = []
    for number, name in enumerate(names):
        plan = grouped_plan(made_from.model, SHAPES[name])
        verify_plan(plan)
        place = folder / f"program_{number}"
        write_program(compile_program(plan, made_from.model), place)
        assert check(place) == "plait/program"
        jobs.append(Job(name, str(place), made_from.source, made_from.file, steps=3))
    return jobs


@pytest.mark.long
def test_six_shapes_are_the_eager_module(gpt2, tmp_path):
    for verdict in verify(programs(gpt2, tmp_path, SHAPES), 4, timeout_seconds=300):
        assert verdict.passed, str(verdict)


@pytest.mark.long
def test_a_lost_share_of_the_batch_is_seen(gpt2, tmp_path):
    """The reference knows nothing of groups: without the sums of gradients it differs."""
    (job,) = programs(gpt2, tmp_path, ["replicas shard differently"])
    for file in Path(job.folder).glob("group_1/stage_*.py"):
        text = file.read_text()
        file.write_text(
            text.replace("return (h", "return (2 * h", 1).replace("return h", "return 2 * h")
        )
    (verdict,) = verify([job], 4, timeout_seconds=300)
    assert not verdict.passed


@pytest.mark.long
def test_checkpoints_move_between_shapes(gpt2, tmp_path):
    jobs = programs(gpt2, tmp_path, list(SHAPES)[2:5])
    folders = [job.folder for job in jobs]
    target = ["-m", "plait.tests.codegen.device_groups_worker", gpt2.source, *folders]
    launch(4, target, timeout_seconds=300, directory=tmp_path)


def test_what_groups_cannot_keep_is_refused(gpt2):
    plan = grouped_plan(gpt2.model, SHAPES["one feeds two"])
    muon = replace(plan, optimizer=replace(plan.optimizer, name="muon", demand="per tensor"))
    with pytest.raises(UsageError, match="muon must see whole tensors"):
        compile_program(muon, gpt2.model)


def test_a_broken_plan_is_told(gpt2):
    plan = grouped_plan(gpt2.model, SHAPES["one feeds two"])
    first, second, third = plan.groups
    for groups, where in (
        ((first, second), "one for every stage"),
        ((first, second, replace(third, part=0, first_device=2)), "another group has"),
        ((first, second, replace(third, micro_batches=(0,))), "once for every micro-batch"),
        ((first, second, replace(third, first_device=9)), "beyond"),
        ((first, second, replace(third, micro_batches=(5, 1))), "in order"),
        ((first, second, replace(third, part=7)), "no such"),
    ):
        with pytest.raises(FileError, match=where):
            verify_plan(replace(plan, groups=groups))
    layers = (replace(plan.layers[0], stage=None), *plan.layers[1:])
    with pytest.raises(FileError, match=r"layers\[0\].stage"):
        verify_plan(replace(plan, layers=layers))
