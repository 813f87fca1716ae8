"""Files of version 1 are read: keys by their new names, numbers of options by position."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from plait.codegen import compile_program
from plait.ir.analysis.bound_sharding import bind
from plait.ir.analysis.dataflow import analyse_dataflow
from plait.ir.errors import FileError
from plait.ir.files import file_version_1 as old
from plait.ir.files.file_version_1 import FORMATS, upgrade
from plait.ir.files.json_files import dump, load
from plait.ir.model.model import Model
from plait.ir.plan.plan import Layers, Plan, Stage
from plait.ir.plan.program import PLAN_FILE
from plait.ir.plan.sharding import Chunking
from plait.ir.plan.workload import CallWork, PeakPoint, StageBytes

DATA = Path(__file__).parent / "data"
PLANS = ("plan", "pipeline")


def read(name: str) -> Plan:
    return load((DATA / f"{name}.json").read_bytes(), Plan, "plait/plan")


@pytest.fixture(scope="module")
def model() -> Model:
    return load((DATA / "model.1.json").read_bytes(), Model, "plait/model")


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_of_version_1_is_the_same_program(name, model):
    old, new = (compile_program(read(f"{name}.{version}"), model) for version in (1, 2))
    sources = [{n: t for n, t in one.files if n != PLAN_FILE} for one in (old, new)]
    assert sources[0] == sources[1]
    assert replace(old.table, plan_digest="") == replace(new.table, plan_digest="")


@pytest.mark.parametrize("name", PLANS)
def test_positions_are_the_names_of_version_2(name, model):
    old, new = read(f"{name}.1"), read(f"{name}.2")
    axes = analyse_dataflow(model).axes
    for one, other in zip(old.shardings, new.shardings, strict=True):
        assert all(str(split).startswith("#") for splits in one.op_splits for split in splits)
        assert one.boundary == other.boundary
        function, known = model.function(one.function), axes[one.function]
        assert bind(one, function, known) == bind(other, function, known)
    unnamed = [replace(plan, shardings=(), chunkings=(), alternatives=()) for plan in (old, new)]
    assert dump(unnamed[0], "plait/plan") == dump(unnamed[1], "plait/plan")


@pytest.mark.parametrize("name", PLANS)
def test_what_was_read_is_written_as_version_2(name):
    text = dump(read(f"{name}.1"), "plait/plan")
    assert json.loads(text)["version"] == 2
    assert load(text, Plan, "plait/plan") == read(f"{name}.1")


def test_a_position_that_is_none_is_refused(model):
    text = (DATA / "plan.1.json").read_text().replace('"choices":[[0', '"choices":[[99', 1)
    with pytest.raises(FileError, match=r"shardings\[\d\].*'#99'; there are: replicate"):
        compile_program(load(text.encode(), Plan, "plait/plan"), model)


def broken(**fields: object) -> bytes:
    return json.dumps({**json.loads((DATA / "plan.1.json").read_text()), **fields}).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (broken(shardings=[{"choices": [[-1]]}]), "shardings"),
        (broken(memory_limit_bytes=1), "version 1 and 2 in one object"),
        (broken(divisions=[{"split": 3}]), "chunkings"),
        (broken(stages=4), "stages"),
        (broken(version=2), "unknown field|missing required"),
        (broken(version=3), "reads versions 1 and 2"),
    ],
)
def test_what_is_broken_is_refused_in_text(data, says):
    with pytest.raises(FileError, match=says):
        load(data, Plan, "plait/plan")


def test_a_program_of_version_1_is_refused():
    with pytest.raises(FileError, match="write it again"):
        upgrade({}, "plait/program")
    assert "plait/program" not in FORMATS


KINDS = (
    (old.PLAN, Plan),
    (old.STAGE, Stage),
    (old.STAGE_BYTES, StageBytes),
    (old.PEAK_POINT, PeakPoint),
    (old.LAYERS, Layers),
    (old.CALL_WORK, CallWork),
    (old.CHUNKING, Chunking),
)


@pytest.mark.parametrize(("renamed", "kind"), KINDS)
def test_new_keys_are_fields_and_old_ones_are_none(renamed, kind):
    assert set(renamed.keys.values()) <= set(kind.__struct_fields__)
    assert set(renamed.keys).isdisjoint(set(kind.__struct_fields__) - set(renamed.keys.values()))
