"""Verify catches every silent fault and names the first wrong tensor; sound programs pass."""

import re
import shutil
from pathlib import Path

import pytest

from plait.api.formats.model_source import ModelSource
from plait.api.plans.compositions import Composition, Trial, plan_of
from plait.codegen import compile_program, write_program
from plait.ir.files.json_files import dump, load
from plait.ir.lowering.cast import cast_model
from plait.ir.model.model import Model
from plait.ir.plan.strategy import parse_strategy
from plait.runtime.verification.verify import Job, verify
from plait.tests.faults.mutations import MUTATIONS, Mutation, Setting

SAMPLE = (  # generated text, masks, the runtime's objects, the trace; buffers only in all
    "an all-reduce is missing",
    "a seed per rank",
    "a part of a tied weight's gradient is lost",
    "the trace has another factor than the module",
)
SAMPLED = [m for m in MUTATIONS if m.name in SAMPLE]


class Workshop:
    """Compiles settings, once each, and plants faults in copies of their programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, Model] = {}
        self.sound: dict[Setting, Job] = {}

    def model(self, name: str) -> Model:
        if name not in self.models:
            self.models[name] = cast_model(source(name).load(), "float64")
        return self.models[name]

    def compile(self, setting: Setting, model: Model, name: str) -> Job:
        strategy = parse_strategy(setting.strategy)
        composition = Composition(
            setting.strategy, micro_batches=setting.micro_batches, memory=setting.memory
        )
        trial = Trial(composition, source(setting.model), model)
        place = self.folder / re.sub(r"\W", "_", name)
        program = compile_program(plan_of(trial, strategy.devices), model)
        write_program(program, place)
        file = place.with_suffix(".json")
        file.write_bytes(dump(model, "plait/model"))
        return Job(name, str(place), source(setting.model).source, str(file))

    def job(self, mutation: Mutation) -> Job:
        setting = mutation.setting
        model = self.model(setting.model)
        if mutation.trace is not None:
            before = dump(model, "plait/model").decode()
            after = mutation.trace(before)
            assert after != before
            lost = load(after.encode(), Model, "plait/model")
            return self.compile(setting, lost, mutation.name)
        if setting not in self.sound:
            self.sound[setting] = self.compile(setting, model, f"sound {setting}")
        sound = self.sound[setting]
        place = self.folder / re.sub(r"\W", "_", mutation.name)
        shutil.copytree(sound.folder, place)
        mutation.plant(place)
        return Job(mutation.name, str(place), sound.source, sound.model)


def source(name: str) -> ModelSource:
    return ModelSource(f"plait.benchmarks.composition_models:{name}")


def check(mutations, folder: Path) -> None:
    """All mutations of one number of ranks run in one launch, beside the sound programs."""
    shop = Workshop(folder)
    jobs = {m.name: shop.job(m) for m in mutations}
    by_ranks: dict[int, list[Job]] = {}
    for m in mutations:
        ranks = parse_strategy(m.setting.strategy).devices
        by_ranks.setdefault(ranks, []).append(jobs[m.name])
    for setting, job in shop.sound.items():
        by_ranks[parse_strategy(setting.strategy).devices].append(job)
    verdicts = [v for ranks, todo in by_ranks.items() for v in verify(todo, ranks, 1200)]
    by_name = {verdict.name: verdict for verdict in verdicts}
    for job in shop.sound.values():
        assert by_name[job.name].passed, str(by_name[job.name])
    missed = []
    for m in mutations:
        verdict = by_name[m.name]
        named = re.search(m.first, verdict.first_wrong)
        if verdict.passed or verdict.failure or not named:
            missed.append(str(verdict))
    assert not missed, "\n".join(missed)


@pytest.mark.ranks
def test_a_sample_of_faults_is_caught_and_named(tmp_path: Path) -> None:
    assert len(SAMPLED) == len(SAMPLE)
    check(SAMPLED, tmp_path)


@pytest.mark.long
@pytest.mark.ranks
def test_every_fault_is_caught_and_named(tmp_path: Path) -> None:
    assert len(MUTATIONS) >= 12
    check(MUTATIONS, tmp_path)
