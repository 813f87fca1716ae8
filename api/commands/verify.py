"""`plait verify`: the program of a plan or placement on gloo ranks against one process."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ...ir.errors import MismatchError, VerifyError
from .arguments import add_json, add_source, source_of
from .output import print_json

if TYPE_CHECKING:
    from ..compilation import VerificationCase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("plan", metavar="PLAN", help="plan.json or placement.json")
    add_source(parser)
    add_json(parser)
    parser.add_argument(
        "--ranks",
        type=int,
        help="gloo ranks; default: the plan's devices; 4 at most with --scale tiny",
    )
    parser.add_argument(
        "--scale",
        choices=("tiny",),
        help="tiny: the same decisions on a small model (hf: sources) and few ranks: axes "
        "of 2, as many roles as fit, a layer of every sort",
    )
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps to compare")
    parser.add_argument(
        "--program", metavar="DIR", help="verify the float64 program in DIR instead of a fresh one"
    )
    parser.add_argument("--keep", metavar="DIR", help="leave the verified float64 program in DIR")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds")


def run(arguments: argparse.Namespace) -> int:
    from ...codegen import write_program
    from ...ir.lowering.cast import cast_model
    from ...runtime.verification.verify import Job, verify
    from .. import files

    with tempfile.TemporaryDirectory(prefix="plait-verify-") as scratch:
        case = _case(arguments, Path(scratch))
        for line in () if arguments.json else case.notes:
            print(line, flush=True)
        target = case.target
        folder = Path(arguments.program or arguments.keep or Path(scratch, "program"))
        if arguments.program is None:
            write_program(target.float64_program(case.model), folder)
        model_file = Path(scratch, "model.json")
        files.write(model_file, cast_model(case.model, "float64"), "plait/model")
        job = Job(
            target.name,
            str(folder),
            case.source.source,
            str(model_file),
            batch=target.batch,
            seq=case.source.seq,
            steps=arguments.steps,
        )
        verdict = verify([job], target.ranks, arguments.timeout)[0]
    if arguments.json:
        scale = {} if case.scale is None else {"scale": case.scale}
        print_json(
            {
                "passed": verdict.passed,
                "loss": verdict.loss,
                "gradient": verdict.gradient,
                "parameter": verdict.parameter,
                "failure": verdict.failure,
                **scale,
            }
        )
    else:
        print(verdict)
    if not verdict.passed:
        raise VerifyError(f"{target.name}: the program differs from one process")
    return 0


def _case(arguments: argparse.Namespace, scratch: Path) -> VerificationCase:
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
