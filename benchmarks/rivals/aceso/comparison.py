"""Every setting of Aceso: its published and rerun plans, a grid of uniform plans, and ours."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from plait.benchmarks.rivals.aceso.judge import AcesoJudge
from plait.benchmarks.rivals.aceso.plan import AcesoPlan
from plait.benchmarks.rivals.aceso.profile import Setting, read_model, read_settings
from plait.benchmarks.rivals.aceso.search import floor_seconds, search
from plait.benchmarks.rivals.row import Comparison, Reproduced, Row, number, read_results, same

PUBLISHED = (  # name of the planner, columns of its step and of its search seconds
    ("Aceso, published", "published_predicted_s", "published_search_s"),
    ("Megatron grid", "megatron_grid_s", ""),
)
STAGE_MB = 1e-2  # MB by which a stage's memory may differ from what was printed


def compare(folder: Path) -> Comparison:
    """Rows of all settings in a folder with profiles, settings, and what was published."""
    results = {row["setting"]: row for row in read_results(folder / "results.csv")}
    path, plans = folder / "plans.json", defaultdict[str, list[dict[str, object]]](list)
    for data in json.loads(path.read_text()) if path.is_file() else []:
        plans[data["setting"]].append(data)
    rows, steps, sizes = list[Row](), list[bool](), list[bool]()
    for setting in read_settings(folder):
        judge = AcesoJudge(read_model(folder, setting), setting)
        floor = floor_seconds(judge.model, setting)
        rows += _published(setting, results.get(setting.setting, {}), floor)
        rerun = list[Row]()
        for data in plans[setting.setting]:
            plan = AcesoPlan.parse(data)
            rerun.append(
                _row(
                    judge, f"{data['searched_by']}".replace("run here", "rerun"), plan, None, floor
                )
            )
            steps.append(same(judge.step_seconds(plan), float(f"{data['step_s']}")))
            printed = zip(judge.stage_mb(plan), _floats(data["stage_mb"]), strict=True)
            sizes.append(all(abs(a - b) < STAGE_MB for a, b in printed))
        rows += sorted(rerun, key=lambda row: row.step_seconds or 0.0)[:1]
        rows.append(_ours(judge, floor))
    reproduced = (
        Reproduced("steps of Aceso's cost model", sum(steps), len(steps)),
        Reproduced("plans' memory by stage", sum(sizes), len(sizes)),
    )
    return Comparison(tuple(rows), reproduced)


def _floats(values: object) -> list[float]:
    assert isinstance(values, list)
    return [float(value) for value in values]


def _published(setting: Setting, result: dict[str, str], floor: float) -> Iterator[Row]:
    for planner, step, search_seconds in PUBLISHED:
        seconds = number(result.get(step))
        if seconds is not None:
            cpu = number(result.get(search_seconds))
            yield Row("aceso", setting.setting, planner, seconds, None, None, None, cpu, floor)


def _ours(judge: AcesoJudge, floor: float) -> Row:
    start = time.process_time()
    answer = search(judge.model, judge.setting)
    cpu_seconds = time.process_time() - start
    name = judge.setting.setting
    if answer is None:
        return Row("aceso", name, "plait", None, None, None, None, cpu_seconds, floor)
    row = _row(judge, "plait", answer.plan, cpu_seconds, floor)
    assert row.step_seconds is not None
    assert same(answer.step_seconds, row.step_seconds)
    faults = judge.faults(answer.plan)
    assert not row.too_large
    assert not faults, faults
    return row


def _row(
    judge: AcesoJudge, planner: str, plan: AcesoPlan, cpu_seconds: float | None, floor: float
) -> Row:
    return Row(
        "aceso",
        judge.setting.setting,
        planner,
        judge.step_seconds(plan),
        None,
        judge.too_large(plan),
        "GPUs" in judge.faults(plan),
        cpu_seconds,
        floor,
    )
