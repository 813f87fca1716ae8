"""The table of headlines: one declaration a system, honest states, rows as promised."""

import json

import pytest

from plait.benchmarks import headlines
from plait.benchmarks.seed_systems.figure import row
from plait.benchmarks.seed_systems.table import SYSTEMS

FIGURES = [(system, figure) for system in SYSTEMS for figure in system.figures]


def test_every_system_is_declared_once():
    names = [system.name.lower() for system in SYSTEMS]
    assert len(names) == len(set(names))
    assert all(system.figures for system in SYSTEMS)


def test_what_is_nothing_has_no_figure_of_ours():
    for system, figure in FIGURES:
        if figure.state == "nothing":
            assert figure.measure is None, system.name


def test_long_figures_are_measured_only_if_asked_for():
    for system, figure in FIGURES:
        if figure.long:
            assert row(system, figure, None, long=False).ours is None


def test_rows_are_json(capsys):
    assert headlines.main(["--systems", "cser,Random-K", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    keys = {"system", "quantity", "paper", "ours", "unit", "state", "conditions"}
    assert {r["system"] for r in rows} == {"CSER", "random-k"}
    assert all(set(r) == keys and r["ours"] > 1 for r in rows)


def test_rows_of_some_systems_are_written_anew_among_the_others(tmp_path, capsys):
    """Others stay as they are, in the order of the systems."""
    table = tmp_path / "table.md"
    one = headlines.Row("Galvatron", "as it was", 1, 2, "", "plan", "")
    table.write_text(headlines.markdown([one]) + "| CSER | stale | | 1 | | program | |\n")
    assert headlines.main(["--systems", "CSER", "--markdown", str(table)]) == 0
    lines = table.read_text().splitlines()
    assert "stale" not in table.read_text()
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| Galvatron", "| CSER"]


def test_unknown_systems_are_refused():
    with pytest.raises(SystemExit, match="TSPLIT"):
        headlines.main(["--systems", "TSPLI"])
