"""Every scenario of Sailor: the plans of its ten planners and ours, under its judge."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.benchmarks.rivals.row import Comparison, Reproduced, Row, number, read_results, same
from plait.benchmarks.rivals.sailor.floor import floor_seconds
from plait.benchmarks.rivals.sailor.judge import SailorJudge
from plait.benchmarks.rivals.sailor.plan import SailorPlan
from plait.benchmarks.rivals.sailor.profile import read_cloud, read_profiles
from plait.benchmarks.rivals.sailor.question import Scenario, read_scenarios
from plait.benchmarks.rivals.sailor.quick_prices import QuickPrices
from plait.benchmarks.rivals.sailor.search import search


def compare(folder: Path) -> Comparison:
    """Rows of all scenarios in a folder with profiles, scenarios, and what planners answered."""
    cloud, profiles = read_cloud(folder), read_profiles(folder)
    prices = {model: QuickPrices(profile, cloud) for model, profile in profiles.items()}
    plans = _plans(folder / "plans.json")
    results = {
        (row["scenario"], row["planner"]): row for row in read_results(folder / "results.csv")
    }
    rows, steps, dollars = list[Row](), list[bool](), list[bool]()
    for scenario in read_scenarios(folder):
        judge = SailorJudge(profiles[scenario.model], cloud)
        for data in plans:
            if data["scenario"] == scenario.scenario:
                result = results.get((scenario.scenario, data["planner"]), {})
                rows.append(_theirs(judge, scenario, data, result))
                steps.append(same(rows[-1].step_seconds or 0.0, data["step_s"]))
                if result.get("rule_step_s") in (None, result.get("step_s")):
                    dollars.append(same(rows[-1].dollars or 0.0, data["usd"]))
        rows.append(_ours(judge, scenario, prices[scenario.model]))
    reproduced = (
        Reproduced("steps of Sailor's simulator", sum(steps), len(steps)),
        Reproduced("prices of its steps", sum(dollars), len(dollars)),
    )
    return Comparison(tuple(rows), reproduced)


def _plans(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.is_file() else []


def _theirs(
    judge: SailorJudge, scenario: Scenario, data: dict[str, Any], result: dict[str, str]
) -> Row:
    plan = SailorPlan.parse(data)
    name = data["planner"] + ("" if plan.equal_replicas else " (unequal replicas)")
    return row_of(judge, scenario, name, plan, number(result.get("search_cpu_s")))


def _ours(judge: SailorJudge, scenario: Scenario, prices: QuickPrices) -> Row:
    start = time.process_time()
    answer = search(prices, scenario)
    cpu_seconds = time.process_time() - start
    if answer is None:
        floor = floor_seconds(judge.profile, scenario.fleet)
        return Row("sailor", scenario.scenario, "plait", None, None, None, None, cpu_seconds, floor)
    plan = answer.plan.plan()
    row = row_of(judge, scenario, "plait", plan, cpu_seconds)
    assert row.step_seconds is not None
    assert same(answer.price.seconds, row.step_seconds)
    assert plan.equal_replicas
    assert not row.too_large
    assert not row.over_fleet
    return row


def row_of(
    judge: SailorJudge,
    scenario: Scenario,
    planner: str,
    plan: SailorPlan,
    cpu_seconds: float | None,
) -> Row:
    """The row of a plan, judged."""
    return Row(
        "sailor",
        scenario.scenario,
        planner,
        judge.step_seconds(plan),
        judge.dollars(plan),
        judge.too_large(plan),
        judge.over_fleet(plan, scenario.fleet),
        cpu_seconds,
        floor_seconds(judge.profile, scenario.fleet),
    )


def lawful_rows(rows: tuple[Row, ...]) -> Iterator[Row]:
    """Rows of rivals that fit, use GPUs that there are, and have equal replicas."""
    for row in rows:
        if row.planner != "plait" and not (row.too_large or row.over_fleet):
            if "unequal" not in row.planner:
                yield row
