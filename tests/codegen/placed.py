"""Random placements, and their programs run in one process: a thread per rank, strict mailboxes.

A send waits until it is received, and receives are not begun early: stricter than any network.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable
from typing import Any

import torch

from plait.codegen.placement import compile_placement
from plait.cost_model.hardware import load_cluster
from plait.cost_model.placement.from_model import graph_of
from plait.ir.capture.operators.elementary import call_key
from plait.ir.model.model import Model
from plait.ir.plan.placement import Placement, uniform_target
from plait.ir.plan.program import GeneratedProgram
from plait.planner.question.options import PlanOptions
from plait.planner.question.training import optimizer_states

PATIENCE_SECONDS = 20


def random_placement(model: Model, ranks: int, seed: int) -> Placement:
    """Every operator anywhere, in any order; updates are where their tensors are."""
    rng = random.Random(seed)
    graph = graph_of(model, load_cluster("local:1"), optimizer_states(PlanOptions(), 4))
    home: dict[Any, int] = {}
    device = {}
    for node in graph.nodes:
        group = node.id if node.colocation is None else node.colocation
        device[str(node.id)] = home.setdefault(group, rng.randrange(ranks))
    order = [node.id for node in graph.nodes]
    rng.shuffle(order)
    return Placement(
        device=device,
        order=tuple(order),
        makespan_us=1.0,
        lower_bound_us=0.0,
        gap=1.0,
        status="feasible",
        peak_memory=(0.0,) * ranks,
        algorithm="random",
        link="duplex",
        memory_rule="train",
        target=uniform_target(ranks, 1e9, 1.0, 1.0),
        graph=graph,
        model_digest=model.fingerprint(),
        global_batch=model.batch,
    )


class Mailboxes:
    """One line per pair of ranks; both ends wait for each other."""

    def __init__(self) -> None:
        self.lines: dict[tuple[int, int], queue.Queue] = {}
        self.taken: dict[tuple[int, int], queue.Queue] = {}
        self.lock = threading.Lock()

    def line(self, book: str, pair: tuple[int, int]) -> queue.Queue:
        with self.lock:
            return getattr(self, book).setdefault(pair, queue.Queue())


class OneProcess:
    """What a generated rank calls as `run`, without torch.distributed."""

    device = torch.device("cpu")

    def __init__(
        self, rank: int, mail: Mailboxes, state_tensors: dict[str, torch.Tensor], seed: int
    ) -> None:
        self.rank, self.mail, self.state_tensors, self.seed = rank, mail, state_tensors, seed
        self.gradients: dict[str, torch.Tensor] = {}
        self.updates: dict[str, torch.Tensor] = {}
        self.sent: list[tuple[int, int]] = []

    def fetch(self, name: str) -> torch.Tensor:
        return self.state_tensors[name]  # KeyError: what this rank does not hold

    def random_key(self, call: int) -> torch.Tensor:
        return torch.tensor([call_key(self.seed, 0, call), 0])

    def fill(self, shape: list[int], number: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full(shape, number, dtype=dtype)

    def send(self, value: torch.Tensor, target: int) -> None:
        self.sent.append((value.data_ptr(), target))
        pair = self.rank, target
        self.mail.line("lines", pair).put(value.clone(memory_format=torch.contiguous_format))
        self.mail.line("taken", pair).get(timeout=PATIENCE_SECONDS)

    def receive(self, source: int, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        pair = source, self.rank
        value = self.mail.line("lines", pair).get(timeout=PATIENCE_SECONDS)
        self.mail.line("taken", pair).put(None)
        assert (list(value.shape), value.dtype) == (shape, dtype)
        return value

    def wait(self, value: torch.Tensor) -> None:
        assert value is not None

    def gradient(self, name: str, value: torch.Tensor) -> None:
        assert name in self.state_tensors
        assert name not in self.gradients
        self.gradients[name] = value

    def replace(self, name: str, value: torch.Tensor) -> None:
        assert name in self.state_tensors
        self.updates[name] = value


Outcome = tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]


def run_ranks(
    program: GeneratedProgram,
    state_tensors: dict[str, torch.Tensor],
    batch: dict[str, torch.Tensor],
    seed: int = 0,
) -> Outcome:
    """Loss, gradients and buffers of one step of all ranks."""
    sources = dict(program.files)
    mail, losses, failures = Mailboxes(), [], []
    runs = []
    for rank in range(program.table.stages):
        mine = {
            h.name: state_tensors[h.name]
            for h in program.table.state_tensors
            if h.stages == (rank,)
        }
        runs.append(OneProcess(rank, mail, mine, seed))

    def work(run: OneProcess) -> None:
        try:
            space: dict[str, Any] = {}
            exec(sources[f"rank_{run.rank}.py"], space)
            with torch.no_grad():
                losses.append(space["step"](run, *(batch[name] for name in space["BATCH"])))
        except Exception as error:
            failures.append(error)

    _together([lambda run=run: work(run) for run in runs])
    if failures:
        raise failures[0]
    (loss,) = [x for x in losses if x is not None]
    gradients = {n: g for run in runs for n, g in run.gradients.items()}
    return loss, gradients, {n: u for run in runs for n, u in run.updates.items()}


def _together(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job, daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def compiled(model: Model, ranks: int, seed: int) -> GeneratedProgram:
    return compile_placement(random_placement(model, ranks, seed), model)
