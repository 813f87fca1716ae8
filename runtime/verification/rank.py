"""One rank of a verification: trains the programs of a file of jobs; rank 0 compares them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from ...ir.capture import Source, materialize
from ...ir.capture.sources.configuration import default_dtype
from ...ir.errors import PlaitError
from ...ir.files.json_files import load
from ...ir.files.whole_file import write_whole
from ...ir.lowering.cast import HALF_PRECISIONS, PRECISIONS, cast_model
from ...ir.model.model import Model
from ..comm.process_group import GroupPool
from ..comm.watchdog import PATIENT, CommunicationError
from ..launch.session import session
from ..program import Program
from ..state import unsharded
from .bare_module import bare_source
from .compare import (
    BY_ROUNDING,
    Actual,
    Comparison,
    Rounding,
    backward_order,
    compare,
    compare_rounded,
)
from .half_precision import in_half
from .reference import in_its_precision, interpreted, reference, with_rounded_gradients
from .training import Gradients, Reference, Training, training_of
from .verify import EXACT, Job, Raised, RankError, Verdict, raised_file, started_file

Known = dict[tuple[object, ...], Reference]
Built = dict[tuple[object, ...], Source]


def main(todo: str, results: str) -> None:
    """Run the jobs of a file; rank 0 writes a line per verdict."""
    jobs = msgspec.json.decode(Path(todo).read_bytes(), type=list[Job])
    known: Known = {}
    built: Built = {}
    with session("gloo") as rank, Path(results).open("a", encoding="utf-8") as file:
        started_file(Path(results)).touch()
        pool = GroupPool(rank, PATIENT)
        for job in jobs:
            try:
                verdict = run(job, pool, known, built)
            except Exception as error:
                write_whole(raised_file(Path(results), rank), _raised(rank, error))
                raise
            if rank == 0:
                file.write(verdict.line())
                file.flush()


def _raised(rank: int, error: Exception) -> bytes:
    """A rank's error as a file has it."""
    code = error.exit_code if isinstance(error, PlaitError) else RankError.exit_code
    text = f"{type(error).__name__}: {error}"
    return msgspec.json.encode(Raised(rank, text, code, isinstance(error, CommunicationError)))


def run(job: Job, pool: GroupPool, known: Known, built: Built) -> Verdict:
    """Train a job's program and compare it, on rank 0, with one process.

    `known` and `built` carry references and modules over to later jobs of the same source: programs
    read a module's parameters, and leave it as it is.
    """
    start = time.monotonic()
    model = load(Path(job.model).read_bytes(), Model, "plait/model")
    training = training_of(job.optimizer, job.steps, job.seed)
    dtype = PRECISIONS[job.precision]
    references = _references(job, model, training, known) if pool.rank == 0 else []
    with default_dtype(_default_type(job.precision)):
        key = (job.source, job.model, job.batch, job.seq, job.seed, dtype)
        if key not in built:
            built[key] = _build(job, model, job.precision)
        actual = _train(job, built[key], training, pool)
    if pool.rank != 0:
        return Verdict(job.name)
    exact = references[0]
    if job.precision == "fp64":
        comparison, allowed = _exact_comparison(job, model, training, exact, actual), EXACT
    else:
        length = training.longest_step() * job.steps
        rounding = Rounding(getattr(torch, dtype), length, job.lossy)
        comparison, allowed = compare_rounded(exact, references[1], actual, rounding)
    return _verdict(job, exact, comparison, allowed, time.monotonic() - start)


def _exact_comparison(
    job: Job, model: Model, training: Training, exact: Reference, actual: Actual
) -> Comparison:
    """The comparison with float64; where it differs, also with what rounding does to one process."""
    order = backward_order(model)
    comparison = compare(exact, actual, order)
    if not comparison.first_wrong or not math.isfinite(comparison.gradient.error):
        return comparison
    rounded = with_rounded_gradients(training)
    lifted = cast_model(model, PRECISIONS["fp64"])
    return compare(exact, actual, order, _reference(job, lifted, rounded, "fp64"))


def _verdict(
    job: Job,
    expected: Reference,
    comparison: Comparison,
    allowed: tuple[float, float, float],
    seconds: float,
) -> Verdict:
    # a mask that one side draws alone is harmless only where every number agrees to rounding
    exact = allowed == EXACT and not comparison.first_wrong
    draws, notes = expected.unmatched_draws, expected.notes
    faults = expected.faults if exact else (*draws, *expected.faults)
    if exact:
        notes += tuple(f"{draw}; nothing reads it" for draw in draws)
    if comparison.arbitrary:
        names = ", ".join(comparison.arbitrary[:3])
        notes += (f"{BY_ROUNDING} {names}",)
    first_wrong = "; ".join(filter(None, (*faults, comparison.first_wrong)))
    return Verdict(
        job.name,
        comparison.loss,
        *comparison.gradient,
        *comparison.parameter,
        seconds,
        "",
        first_wrong,
        notes,
        allowed,
    )


def _references(job: Job, model: Model, training: Training, known: Known) -> list[Reference]:
    """The reference in float64, and where the program is of another precision, a run in that one."""
    precisions = ("fp64",) if job.precision == "fp64" else ("fp64", job.precision)
    references = []
    for precision in precisions:
        key = (
            *(job.source, job.model, job.batch, job.seq, job.steps, job.seed),
            *(job.optimizer, precision),
        )
        if key not in known:
            known[key] = _reference(
                job, cast_model(model, PRECISIONS[precision]), training, precision
            )
        references.append(known[key])
    return references


def _reference(job: Job, model: Model, training: Training, precision: str) -> Reference:
    def build() -> Source:
        return _build(job, model, precision)

    with default_dtype(_default_type(precision)):
        if _is_model_file(job):
            return interpreted(build, model, training)
        if precision in HALF_PRECISIONS:
            return in_half(build, model, training, getattr(torch, PRECISIONS[precision]))
        function: Callable[..., Reference] = reference if precision == "fp64" else in_its_precision
        return function(build, model, training)


def _default_type(precision: str) -> torch.dtype:
    """What integers become in a quotient or a logarithm: as in the user's own process, but for float64,
    to which a trace is lifted."""
    return torch.float64 if precision == "fp64" else torch.float32


def _build(job: Job, model: Model, precision: str) -> Source:
    """The module and batch of a job, built anew: in a precision, or for one of 16 bits, in its own
    types."""
    dtype = PRECISIONS[precision]
    if _is_model_file(job):
        return bare_source(cast_model(model, dtype), job.source, job.seed)
    if precision in HALF_PRECISIONS:
        return materialize(job.source, batch=job.batch, seq=job.seq, seed=job.seed)
    with default_dtype(torch.float32):  # as in the user's own process
        return materialize(job.source, batch=job.batch, seq=job.seq, dtype=dtype, seed=job.seed)


def _is_model_file(job: Job) -> bool:
    return job.source.endswith(".json") and not job.source.startswith("hf:")


def _train(job: Job, source: Source, training: Training, pool: GroupPool) -> Actual:
    program = Program.open(
        job.folder,
        source.model,
        training.optimizer,
        training.arguments,
        device="cpu",
        seed=job.seed,
        pool=pool,
    )
    if program.loss_scale is not None:
        program.loss_scale.value = 1.0  # as in the reference: a skipped step is not comparable
    losses, gradients = list[float](), list[Gradients]()
    for _ in range(training.steps):
        losses.append(float(program.forward_backward(source.batch)))
        gradients.append(program.full_gradients())
        program.optimizer_step()
    return Actual(losses, gradients, _state(program, source.model))


def _state(program: Program, module: torch.nn.Module) -> dict[str, Any]:
    """Parameters and buffers, dense, by every name of `state_dict`, and buffers that it leaves out."""
    state = program.state_dict()
    tensors = unsharded.values(program.store, program.groups)
    for name, buffer in module.named_buffers():
        if name not in state:  # one that the program does not read stays as it is
            state[name] = tensors.get(name, buffer)
    return {name: tensor.to_dense() for name, tensor in state.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
