"""`plait pack`: exit codes, the file it writes, and one clear error for every broken file."""

import csv
import json

import pytest

from plait.api.cli import main
from plait.api.formats.buffer_files import read_buffers
from plait.planner.allocation.arena.judge import height

HEAD = "id,lower,upper,size\n"
FITS = HEAD + "b1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"


@pytest.fixture
def files(tmp_path):
    source, made = tmp_path / "buffers.csv", tmp_path / "offsets.csv"
    source.write_text(FITS)
    return source, made


def test_offsets_come_in_input_order_and_are_sound(files, capsys):
    source, plan_file = files
    assert main(["pack", str(source), "--capacity", "12", "-o", str(plan_file), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["status"], figures["peak"], figures["lower_bound"]) == ("optimal", 12, 12)
    rows = list(csv.DictReader(plan_file.open()))
    assert list(rows[0]) == ["id", "lower", "upper", "size", "offset"]
    assert [row["id"] for row in rows] == ["b1", "b2", "b3", "b4", "b5"]
    assert height(read_buffers(source), [int(row["offset"]) for row in rows]) == 12


def test_too_small_a_capacity_exits_3_with_the_numbers(files, capsys):
    source, made = files
    assert main(["pack", str(source), "--capacity", "11", "-o", str(made)]) == 3
    assert "at least 12 bytes, 1 more" in capsys.readouterr().err
    assert not made.exists()


def test_no_time_exits_4_with_the_best_so_far(files, capsys):
    from random import Random

    from plait.tests.planner.allocation.draw import guillotine

    source, plan_file = files
    buffers = guillotine(Random(11), 150, 200, 10_000)
    source.write_text(HEAD + "".join(f"{b.name},{b.lower},{b.upper},{b.size}\n" for b in buffers))
    args = ["pack", str(source), "--capacity", "10000", "--time-limit", "0", "-o", str(plan_file)]
    assert main([*args, "--json"]) == 4
    figures = json.loads(capsys.readouterr().out)
    offsets = [int(row["offset"]) for row in csv.DictReader(plan_file.open())]
    assert figures["status"] == "unknown"
    assert height(buffers, offsets) == figures["peak"] > 10_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1"),
        ("id,lower,upper\na,0,1\n", "line 1"),
        ("id,lower,upper,size,size\n", "line 1"),
        (HEAD + "a,0,1\n", "line 2"),
        (HEAD + "a,0,1,1\na,1,2,1\n", "line 3"),
        (HEAD + "a,0,1,x\n", "line 2: size"),
        (HEAD + "a,0,1,-1\n", "line 2: size"),
        (HEAD + "a,0,1,1e3\n", "line 2: size"),
        (HEAD + "a,0,1,99999999999999999999\n", "line 2: size"),
        (HEAD + "a,3,3,1\n", "line 2: lower"),
        (HEAD + "a,nan,3,1\n", "line 2: lower"),
        (HEAD + f"a,0,1,{1 << 52}\nb,0,1,{1 << 52}\nc,0,1,1\n", "add up"),
        (HEAD + 'a,0,1,"1\n', "not CSV"),
        (HEAD + "a,0,1,1\x00\n", "buffers.csv"),
    ],
)
def test_broken_files_exit_6_and_name_the_line(files, capsys, text, says):
    source, plan_file = files
    source.write_text(text)
    assert main(["pack", str(source), "--capacity", "12", "-o", str(plan_file)]) == 6
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not plan_file.exists()


def test_bytes_that_are_no_text_exit_6(files, capsys):
    source, made = files
    source.write_bytes(b"\xff\xfe\x00")
    assert main(["pack", str(source), "--capacity", "12", "-o", str(made)]) == 6
    assert main(["pack", str(made), "--capacity", "12", "-o", str(made)]) == 6


def test_wrong_usage_exits_2(files):
    source, made = files
    assert main(["pack", str(source), "--capacity", "many", "-o", str(made)]) == 2
    args = ["pack", str(source), "--capacity", "12", "-o", str(made), "--time-limit", "nan"]
    assert main(args) == 2


def test_other_columns_and_empty_lines_do_not_matter(files):
    source, _ = files
    source.write_text("\ufeffsize,id,note,upper,lower\n\n4,a,x,2,0\n")
    assert read_buffers(source)[0].upper == 2


@pytest.fixture
def plan_file(tmp_path, traced):
    """A plan of two stages and the model that it is for."""
    from plait.api import plan
    from plait.api.formats import files as plait_files

    model, model_file = traced("llama"), tmp_path / "model.json"
    plait_files.write(model_file, model, "plait/model")
    made_plan = plan(model, cluster="local:2", pin="pp=2", micro_batches=4, schedule="1f1b")
    made_plan.save(tmp_path / "plan.json")
    return tmp_path / "plan.json", model_file


def test_every_buffer_of_a_plan_gets_an_address_in_its_stage(plan_file, tmp_path, capsys):
    from plait.ir.plan.allocation import Buffer

    file, model = map(str, plan_file)
    made = tmp_path / "offsets.csv"
    assert main(["pack", file, "--model", model, "-o", str(made), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    rows = list(csv.DictReader(made.open()))
    assert [stage["stage"] for stage in stages] == [0, 1]
    for number, stage in enumerate(stages):
        stage_rows = [row for row in rows if row["stage"] == str(number)]
        buffers = [
            Buffer(r["id"], *(int(r[key]) for key in ("lower", "upper", "size")))
            for r in stage_rows
        ]
        assert len(buffers) == stage["buffers"] > 100
        assert height(buffers, [int(row["offset"]) for row in stage_rows]) == stage["peak"]
        assert stage["peak"] <= 1.02 * stage["lower_bound"]
        assert (
            0.5 * stage["promised"] < stage["lower_bound"] < 1.01 * stage["promised"]
        )  # rounded up


def test_a_plan_has_a_capacity_too(plan_file, tmp_path, capsys):
    file, model = map(str, plan_file)
    made = tmp_path / "offsets.csv"
    assert main(["pack", file, "--model", model, "--capacity", "1000", "-o", str(made)]) == 3
    assert "the capacity of 1000" in capsys.readouterr().err
    assert not made.exists()


def test_buffers_need_a_capacity(files, capsys):
    source, made = files
    assert main(["pack", str(source), "-o", str(made)]) == 2
    assert "--capacity is missing" in capsys.readouterr().err
