"""Histograms of tokens over experts: the fullest rank, drops, files."""

import pytest

from plait.cost_model.operators.expert_load import padded_share
from plait.ir.errors import FileError, UsageError
from plait.ir.plan.routing import Routing, parse_routing


def test_the_fullest_rank_waits_for_nobody():
    assert Routing().fullest(16, 4) == 1.0
    assert Routing(counts=(3, 1, 1, 1)).fullest(4, 4) == 2.0
    assert Routing(counts=(3, 1, 1, 1)).fullest(4, 2) == pytest.approx(4 / 3)
    assert Routing(counts=(3, 1, 1, 1), capacity=1.25).fullest(4, 4) == 1.25
    assert Routing(exponent=1.0).fullest(64, 64) > Routing(exponent=0.5).fullest(64, 64) > 1
    assert Routing(counts=(3, 1)).fullest(8, 2) == pytest.approx(1.5)  # read as a curve


def test_a_token_reaches_no_more_nodes_than_it_may_choose_from():
    assert Routing().nodes_reached(1, 8) == 1
    assert 4 < Routing().nodes_reached(8, 8) < 8
    assert Routing(group_share=0.5).nodes_reached(8, 8) < 4


def test_padded_rows_fade_out():
    shares = [padded_share(rows, 128) for rows in (1, 64, 128, 1024, 65536)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(1, abs=0.01)


def test_texts_and_files(tmp_path):
    file = tmp_path / "counts.csv"
    file.write_text("3, 1\n2 2\n")
    assert parse_routing("balanced") == Routing()
    assert parse_routing("zipf:1.5").exponent == 1.5
    assert parse_routing(str(file)).counts == (3, 1, 2, 2)
    for text in ("balanced", "zipf:1.5", "capacity:1.25"):
        assert str(parse_routing(text)) == text
    for text in ("zipf:x", "zipf:-1", "capacity:0", "nowhere"):
        with pytest.raises(UsageError):
            parse_routing(text)
    file.write_text("3 -1")
    with pytest.raises(FileError):
        parse_routing(str(file))
