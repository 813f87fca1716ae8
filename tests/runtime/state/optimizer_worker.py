"""Run by torchrun on 4 ranks: the toy program under many layouts, trained by recipes of users, against
the same recipe on the eager module in one process."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from msgspec.structs import replace

from plait.ir.capture.operators.elementary import call_key
from plait.ir.errors import MismatchError, NonFiniteError, UsageError
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.tests.runtime import toy
from plait.tests.runtime.state import recipes
from plait.tests.runtime.state.recipes import LR, RECIPES, Recipe

ON_HOST = ", on the host"  # is where the optimizer steps
# fmt: off
LAYOUTS = {
    "dp 4": ({"dp": 4}, 1), f"zero1 4{ON_HOST}": ({"zero1": 4}, 1), "zero3 4": ({"zero3": 4}, 1),
    "tp 2 dp 2": ({"tp": 2, "dp": 2}, 1), "pp 2 dp 2": ({"pp": 2, "dp": 2}, 2),
}
MORE_LAYOUTS = {
    "zero2 4": ({"zero2": 4}, 2), "zero3 2 tp 2": ({"zero3": 2, "tp": 2}, 1),
    "pp 2 zero1 2": ({"pp": 2, "zero1": 2}, 2), "pp 4": ({"pp": 4}, 4), "tp 4": ({"tp": 4}, 2),
    "zero3 4 of a half": ({"zero3": 4}, 2, (1, 2)),
    "pp 2 zero3 2 of a third": ({"pp": 2, "zero3": 2}, 2, (1, 3)),
    "zero1 4": ({"zero1": 4}, 1), "zero1 2 zero3 2": ({"zero1": 2, "zero3": 2}, 1),
}
MORE_LAYOUTS |= {f"{name}{ON_HOST}": sizes for name, sizes in LAYOUTS.items() if ON_HOST not in name}
# fmt: on
STEPS, SEED = 4, 5


class Expected:
    """The recipe in one process: losses, norms and values."""

    def __init__(self, recipe: Recipe) -> None:
        module = toy.model()
        optimizer = recipe.optimizer(module)
        scheduler = recipe.scheduler(optimizer) if recipe.scheduler else None
        self.losses, self.norms, batch = [], [], 0
        for _ in range(STEPS):
            optimizer.zero_grad()
            for _ in range(recipe.accumulate):
                key = torch.tensor([call_key(SEED, batch, 1), 0])
                loss = module(toy.batch(batch)["x"], key)
                loss.backward()
                self.losses.append(loss.item())
                batch += 1
            if recipe.clip:
                norm = torch.nn.utils.clip_grad_norm_(module.parameters(), *recipe.clip)
                self.norms.append(norm.item())
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        self.state = {n: p.detach() for n, p in module.named_parameters()}
        self.rates = [g["lr"] for g in optimizer.param_groups]


def close(a: float, b: float) -> float:
    difference = abs(a - b) / max(abs(b), 1e-30)
    assert difference < 1e-9, (a, b)
    return difference


def train(program: Program, recipe: Recipe, steps: range, expected: Expected, scheduler) -> None:
    for step in steps:
        batches = range(step * recipe.accumulate, (step + 1) * recipe.accumulate)
        for number in batches:
            last = number == batches[-1] and recipe.clip is None
            loss = (program.step if last else program.forward_backward)(toy.batch(number))
            close(loss.item(), expected.losses[number])
        if recipe.clip:
            close(program.clip_grad_norm(*recipe.clip).item(), expected.norms[step])
            assert program.optimizer_step()
        if scheduler is not None:
            scheduler.step()


def difference(program: Program, expected: Expected) -> float:
    """Largest difference of a parameter, relative to its largest element."""
    state = program.state_dict()
    return max(
        ((state[n] - t).abs().max() / t.abs().max().clamp(min=1e-30)).item()
        for n, t in expected.state.items()
    )


class Trials:
    def __init__(self, root: Path, rank: int) -> None:
        self.root, self.rank, self.pool = root, rank, GroupPool(rank, PATIENT)
        warnings.filterwarnings("error", message=".*lr_scheduler.*")

    def open(self, layout: str, recipe: Recipe, module=None, **more) -> Program:
        sizes, micro_batches, *fraction = {**LAYOUTS, **MORE_LAYOUTS}[layout]
        folder = self.root / layout.replace(" ", "-")
        if self.rank == 0 and not folder.exists():
            table = toy.table(sizes, micro_batches, "1f1b", *fraction)
            toy.write(folder, replace(table, steps_on_host=ON_HOST in layout))
        dist.barrier()
        arguments = {"param_groups": recipe.groups, "seed": SEED, "pool": self.pool, **more}
        return Program.open(folder, module or toy.model(), recipe.factory, recipe.args, **arguments)

    def recipe(self, layout: str, name: str) -> None:
        recipe, expected = RECIPES[name], Expected(RECIPES[name])
        program = self.open(layout, recipe)
        scheduler = recipe.scheduler(program.optimizer) if recipe.scheduler else None
        train(program, recipe, range(STEPS), expected, scheduler)
        error = difference(program, expected)
        assert error < 1e-9, (layout, name, error)
        assert [g["lr"] for g in program.optimizer.param_groups] == expected.rates
        if self.rank == 0:
            print("recipe", layout, "|", name, "|", f"{error:.1e}")

    def checkpoints(self, name: str, layouts: tuple[str, ...]) -> None:
        """A step under each layout, through checkpoints of everything."""
        recipe, expected = RECIPES[name], Expected(RECIPES[name])
        folder = self.root / f"checkpoint-{name}".replace(" ", "-")
        for step, layout in enumerate(layouts):
            program = self.open(layout, recipe)
            scheduler = recipe.scheduler(program.optimizer) if recipe.scheduler else None
            if step:
                program.load(folder, scheduler=scheduler)
            train(program, recipe, range(step, step + 1), expected, scheduler)
            program.save(folder, scheduler=scheduler)
        assert len(layouts) == STEPS
        assert difference(program, expected) < 1e-9, name
        with pytest.raises(MismatchError, match=r"parameter groups|was saved with"):
            self.open(layouts[0], Recipe(recipes.groups_by_dimension)).load(folder)

    def instance(self, layout: str) -> None:
        """An optimizer that is built already, steered by a scheduler that was made for it."""
        recipe = RECIPES["groups by name"]
        expected, module = Expected(recipe), toy.model()
        before = {n: p.detach().clone() for n, p in module.named_parameters()}
        optimizer = recipe.optimizer(module)
        scheduler = recipe.scheduler(optimizer)
        program = self.open(layout, Recipe(optimizer), module)
        assert program.optimizer is optimizer
        train(program, recipe, range(STEPS), expected, scheduler)
        assert difference(program, expected) < 1e-9, layout
        assert all(torch.equal(before[n], p) for n, p in module.named_parameters())
        with pytest.raises(UsageError, match="not a parameter of the model"):
            self.open(layout, Recipe(recipe.optimizer(toy.model())))
        with pytest.raises(UsageError, match="built already"):
            self.open(layout, Recipe(recipe.optimizer(module), {"lr": 1.0}), module)

    def across(self, layout: str) -> None:
        """Clipping inside the step is right also where ranks have shards; then it is warned of."""
        recipe, expected = Recipe(recipes.ClippedAdamW, {"lr": LR}), None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            program, expected = self.open(layout, recipe), Expected(recipe)
        shards = not layout.startswith("dp 4")
        warned = any("looks at several tensors" in str(w.message) for w in caught)
        assert warned == (shards and self.rank == 0)
        train(program, recipe, range(2), expected, None)
        folder = self.root / f"across-{layout}".replace(" ", "-")
        program.save(folder)
        again = self.open(layout, recipe)
        again.load_checkpoint(folder)
        train(again, recipe, range(2, STEPS), expected, None)
        assert difference(again, expected) < 1e-9

    def noise(self, layout: str) -> None:
        """Replicas of an optimizer that draws random numbers stay the same to the bit."""
        torch.manual_seed(self.rank)
        program = self.open(layout, Recipe(recipes.Langevin, {"lr": LR}))
        before = program.state_dict()
        program.step(toy.batch(0))
        assert any((before[n] != t).any() for n, t in program.state_dict().items())
        for parameter in program.store.trainable():
            rows = [torch.empty_like(parameter.flat) for _ in range(4)]
            dist.all_gather(rows, parameter.flat)
            assert all(torch.equal(rows[0], row) for row in rows), parameter.name

    def nonfinite(self, layout: str) -> None:
        """A step with a NaN anywhere is skipped or stops the run, on all ranks alike."""
        recipe = RECIPES["adamw"]
        bad = {"x": toy.batch(0)["x"].clone()}
        bad["x"][0, 0] = torch.nan
        for choice in ("skip", "stop"):
            program = self.open(layout, recipe, nonfinite=choice)
            before = program.state_dict()
            program.forward_backward(bad)
            if choice == "skip":
                assert program.optimizer_step() is False
            else:
                with pytest.raises(NonFiniteError, match="NaN or infinite, "):
                    program.optimizer_step()
            after = program.state_dict()
            assert all(torch.equal(before[n], after[n]) for n in before if n != "seen")
            program.step(toy.batch(0))
            assert all(t.isfinite().all() for t in program.state_dict().values())

    def first_values(self, layout: str) -> None:
        """Ranks whose modules have other values, or none, train rank 0's."""
        recipe, module = RECIPES["adamw"], toy.model()
        if self.rank == 1:
            module.layers[0].a.data += 1.0
        elif self.rank == 2:
            module = module.to("meta")
        elif self.rank == 3:
            module.w.data.zero_()
        program, expected = self.open(layout, recipe, module), Expected(recipe)
        train(program, recipe, range(STEPS), expected, None)
        assert difference(program, expected) < 1e-9


def main() -> None:
    root, wanted = Path(sys.argv[1]), sys.argv[2]
    with session() as rank:
        trials = Trials(root, rank)
        share = 1 if wanted == "all" else 7
        for number, layout in enumerate({**LAYOUTS, **MORE_LAYOUTS} if share == 1 else LAYOUTS):
            for name in list(RECIPES)[number % share :: share]:
                trials.recipe(layout, name)
            if share == 1 or number == 2:
                trials.across(layout)
            if share == 1 or number == 4:
                trials.nonfinite(layout)
        trials.noise("dp 4")
        trials.instance("zero3 4")
        trials.first_values("pp 2 dp 2")
        if share == 1:
            trials.instance("pp 2 dp 2")
            trials.first_values("zero3 4")
        layouts = ("zero3 4", "tp 2 dp 2", f"zero1 4{ON_HOST}", "pp 2 dp 2")
        moved = ("muon and adamw", "groups by name", "shampoo", "clip and accumulate")
        for name in moved if share == 1 else moved[:1]:
            trials.checkpoints(name, layouts)
    print("done", rank)


if __name__ == "__main__":
    main()
