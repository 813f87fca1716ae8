"""Ranks that share a processor: waiting ranks leave it to others, and it has the work of all to do."""

import pytest
from msgspec.structs import replace

from plait.api.formats.model_source import load_model
from plait.api.python import plan
from plait.cost_model.calibration.curves import cluster_toml
from plait.cost_model.explain.step_terms import step_term
from plait.cost_model.hardware import load_cluster
from plait.cost_model.pipeline.closed_form import pipeline_seconds
from plait.tests.paths import LLAMA

BUSY, SENDS = [4.0, 2.0, 3.0, 3.0], [0.1, 0.1, 0.1, 0.0]


@pytest.mark.parametrize("micro", [1, 4, 16])
def test_a_shared_pipeline_lies_between_its_bounds(micro):
    every = [
        pipeline_seconds(BUSY, SENDS, micro, ranks_per_processor=k) for k in (1.0, 1.5, 2.0, 4.0)
    ]
    assert every == sorted(every, reverse=True)
    assert min(every) >= micro * sum(BUSY) / 4
    assert every[0] == pipeline_seconds(BUSY, SENDS, micro)
    assert pipeline_seconds(BUSY, SENDS, micro, ranks_per_processor=1e6) == micro * 3.0


def test_one_stage_gains_nothing():
    assert pipeline_seconds([3.0], [0.0], 4, ranks_per_processor=2.0) == 12.0


def test_terms_add_up_and_the_file_keeps_it(tmp_path):
    cluster = load_cluster("local:4")
    shared = replace(cluster, device=replace(cluster.device, ranks_per_processor=2.0))
    file = tmp_path / "shared.toml"
    file.write_text(cluster_toml(shared))
    assert load_cluster(str(file)).device.ranks_per_processor == 2.0
    model = load_model(LLAMA)
    alone, together = (
        plan(model, cluster=c, pin="pp=4", micro_batches=4) for c in (cluster, shared)
    )
    assert together.prediction.step_seconds < alone.prediction.step_seconds
    assert step_term(together).value == pytest.approx(together.prediction.step_seconds, rel=1e-12)
