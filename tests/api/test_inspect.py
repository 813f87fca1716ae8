"""`plait inspect` says who waited for whom, from the dumps of the ranks that could leave one."""

import json
from pathlib import Path

import pytest

from plait.api.cli import main
from plait.runtime.comm.flight_recorder import FlightRecorder
from plait.runtime.comm.monitor import Dump, write_dump

ALL = "all ranks 0,1,2"


def dumps(folder: Path) -> None:
    """Ranks 0 and 1 wait for 2, which left no dump, and 1 works longest."""
    states, records = {}, {}
    for rank in range(3):
        recorder = FlightRecorder(rank)
        recorder.finish(recorder.begin("sum of the loss", ALL, (0, 1, 2)))
        if rank < 2:
            recorder.begin("sum of gradients", ALL, (0, 1, 2))
        recorder.step_times.append((1.0, 0.9 if rank == 1 else 0.1))
        states[rank], records[rank] = recorder.state(), tuple(recorder.records)
    for rank in (0, 1):
        others = tuple(states.values())
        write_dump(folder, Dump(states[rank], "rank 2 is missing", records[rank], others))


def test_who_waited_for_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dumps(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "rank 2 is missing",
        "rank 0 waits in sum of gradients (collective 2) for 2",
        "rank 1 waits in sum of gradients (collective 2) for 2",
    ]
    assert "  sum of gradients (collective 2) not done" in lines
    assert "rank 2: step 0, 1 collectives, left no dump" in lines
    assert lines[-1].startswith("rank 1 works 0.9 s of a step of 1 s, 9.00 times the median")
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["missing"] == [2]
    assert data["waits"][1] == {"rank": 1, "collective": "sum of gradients", "awaits": [2]}


def test_a_folder_without_dumps_and_damaged_ones(tmp_path: Path, capsys) -> None:
    assert main(["inspect", str(tmp_path)]) == 6
    assert "no dumps of ranks" in capsys.readouterr().err
    (tmp_path / "rank_00000.json").write_text('{"state": 1}')
    assert main(["inspect", str(tmp_path)]) == 6
    assert "rank_00000.json: not the dump of a rank" in capsys.readouterr().err
