"""`plait verify`: the program of a plan or placement on gloo ranks against one process."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ...ir.errors import MismatchError, UsageError, VerifyError
from .arguments import add_json, add_source, source_of
from .output import note, print_json

if TYPE_CHECKING:
    from ...runtime.verification.verify import Job, Verdict
    from ..compilation import VerificationCase
    from ..plans.compositions import Outcome

FUZZ_RANKS = 4
FUZZ_COMPRESSION = ("none", "none", "none", "auto", "eight-bits", "sdp4bit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "plan", metavar="PLAN", nargs="?", help="plan.json or placement.json; not with --fuzz"
    )
    add_source(parser)
    add_json(parser)
    parser.add_argument(
        "--ranks",
        type=int,
        help="gloo ranks; default: the plan's devices; 4 at most with --scale tiny; 4 with --fuzz",
    )
    parser.add_argument(
        "--scale",
        choices=("tiny",),
        help="tiny: the same decisions on a small model (hf: sources) and few ranks: axes "
        "of 2, as many roles as fit, a layer of every sort",
    )
    parser.add_argument(
        "--fuzz",
        type=int,
        metavar="N",
        help="verify N random strategies, micro-batches, memory actions and compressions of the model",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --fuzz, and of random masks")
    parser.add_argument(
        "--optimizer",
        default="adamw",
        metavar="NAME",
        help="that both sides train with: adamw, sgd, a class of torch.optim (Adafactor), or "
        "file.py:factory; not with --fuzz",
    )
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps to compare")
    parser.add_argument(
        "--program", metavar="DIR", help="verify the float64 program in DIR instead of a fresh one"
    )
    parser.add_argument("--keep", metavar="DIR", help="leave the verified float64 program in DIR")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds, of every launch")


def run(arguments: argparse.Namespace) -> int:
    if arguments.fuzz is not None:
        return _run_fuzz(arguments)
    if arguments.plan is None:
        raise UsageError("verify needs PLAN and SOURCE; for random plans of SOURCE: --fuzz N")
    from ...runtime.launch.scratch import scratch_folder
    from ...runtime.verification.verify import verify

    with scratch_folder("verify-command") as scratch:
        case = case_of(arguments, scratch)
        for line in () if arguments.json else case.notes:
            print(line, flush=True)
        jobs = jobs_of(arguments, case, scratch)
        verdicts = verify(jobs, case.target.ranks, arguments.timeout)
    passed = all(verdict.passed for verdict in verdicts)
    if arguments.json:
        scale = {} if case.scale is None else {"scale": case.scale}
        others = {j.precision: _json(v) for j, v in zip(jobs[1:], verdicts[1:], strict=True)}
        print_json({**_json(verdicts[0]), "passed": passed, **others, **scale})
    else:
        for line in dict.fromkeys(line for verdict in verdicts for line in verdict.notes):
            note(line)
        for verdict in verdicts:
            print(verdict)
    for verdict in verdicts:
        verdict.require()
    return 0


def jobs_of(arguments: argparse.Namespace, case: VerificationCase, scratch: Path) -> list[Job]:
    """The jobs that verify the programs of a plan: in float64, and of 16 bits as it will train."""
    from ...codegen import write_program
    from ...ir.compression.registry import COMPRESSED_OPTIMIZERS
    from ...ir.lowering.cast import HALF_PRECISIONS

    jobs, target, plan = [_job(arguments, case, scratch)], case.target, case.target.plan
    if plan is None or plan.precision not in HALF_PRECISIONS or arguments.program is not None:
        return jobs
    if plan.optimizer.name not in COMPRESSED_OPTIMIZERS:  # those differ from one process by design
        folder = scratch / "trained_program"
        write_program(target.program(case.model, "", "aten"), folder)
        jobs.append(
            msgspec.structs.replace(
                jobs[0],
                name=f"{target.name} in {plan.precision}",
                folder=str(folder),
                precision=plan.precision,
                lossy=bool(plan.compression),
            )
        )
    return jobs


def _job(arguments: argparse.Namespace, case: VerificationCase, scratch: Path) -> Job:
    """The float64 program and the traced model as files, and the job that verifies them."""
    from ...codegen import write_program
    from ...ir.lowering.cast import cast_model
    from ...runtime.verification.verify import Job
    from ..formats import files

    target = case.target
    folder = Path(arguments.program or arguments.keep or Path(scratch, "program"))
    if arguments.program is None:
        write_program(target.float64_program(case.model), folder)
    model_file = Path(scratch, "model.json")
    files.write(model_file, cast_model(case.model, "float64"), "plait/model")
    return Job(
        target.name,
        str(folder),
        case.source.source,
        str(model_file),
        batch=target.batch,
        seq=case.source.seq,
        steps=arguments.steps,
        seed=arguments.seed,
        optimizer=arguments.optimizer,
    )


def _json(verdict: Verdict) -> dict[str, Any]:
    return {
        "passed": verdict.passed,
        "loss": verdict.loss,
        "gradient": verdict.gradient,
        "parameter": verdict.parameter,
        "failure": verdict.failure,
        "first_wrong": verdict.first_wrong,
        "notes": list(verdict.notes),
    }


def case_of(arguments: argparse.Namespace, scratch: Path) -> VerificationCase:
    """What is verified; files that it needs are written to `scratch`."""
    from ..compilation import VerificationCase, read_target
    from ..scaled_down import scaled_down_case

    path, source = Path(arguments.plan), source_of(arguments)
    if arguments.scale == "tiny":
        return scaled_down_case(path, source, arguments.ranks, scratch)
    target = read_target(path)
    ranks = arguments.ranks or target.ranks
    if ranks != target.ranks:
        raise MismatchError(
            f"{path} is for {target.ranks} ranks, --ranks says {ranks}; "
            "--scale tiny verifies a plan on fewer"
        )
    model = source.load_for(target.batch, target.precision, target.model_digest)
    return VerificationCase(target, model, source)


def _run_fuzz(arguments: argparse.Namespace) -> int:
    """Verify random compositions; prints a line for each as they are judged together."""
    from ...runtime.launch.scratch import scratch_folder
    from ..plans.compositions import Choices, Trial, draw, verify_trials

    if arguments.plan is not None:
        raise UsageError("--fuzz draws plans of its own: leave PLAN out")
    if arguments.fuzz < 1:
        raise UsageError(f"--fuzz {arguments.fuzz} is not a number of plans")
    source, ranks = source_of(arguments), arguments.ranks or FUZZ_RANKS
    model, choices = source.load(), Choices(compress=FUZZ_COMPRESSION)
    drawn = [
        draw(random.Random(f"{arguments.seed}.{i}"), model, ranks, choices)
        for i in range(arguments.fuzz)
    ]
    trials = [Trial(composition, source, model) for composition in drawn]
    with scratch_folder("fuzz") as scratch:
        outcomes = verify_trials(trials, ranks, scratch, arguments.timeout)
    failures = [o.verdict for o in outcomes if o.verdict is not None and o.verdict.failure]
    mismatches = [outcome for outcome in outcomes if outcome.mismatch]
    refused = sum(bool(outcome.refused) for outcome in outcomes)
    if arguments.json:
        print_json(
            {
                "tried": len(outcomes),
                "refused": refused,
                "failures": len(failures),
                "mismatches": len(mismatches),
                "outcomes": [_fuzz_json(outcome) for outcome in outcomes],
            }
        )
    else:
        for outcome in outcomes:
            print(outcome.verdict or f"{outcome.trial.composition}: refused: {outcome.refused}")
        for line in {n for o in outcomes if o.verdict for n in o.verdict.notes}:
            note(line)
        counts = f"{refused} refused, {len(failures)} failed, {len(mismatches)} mismatches"
        print(f"{len(outcomes)} tried, {counts}")
    if mismatches:
        raise VerifyError(f"{len(mismatches)} of {len(outcomes)} programs differ from one process")
    for verdict in failures:
        verdict.require()
    return 0


def _fuzz_json(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {"composition": str(outcome.trial.composition)}
    if outcome.verdict is None:
        return row | {"refused": outcome.refused}
    return row | _json(outcome.verdict)
