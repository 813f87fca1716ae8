"""`plait verify`: a plan's or placement's program on gloo ranks against one process."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ...ir.errors import MismatchError, VerifyError
from .. import files
from ..compilation import Subject, read_decision
from .common import load_model, show


def run(options: argparse.Namespace) -> int:
    from ...codegen import write
    from ...ir.lowering.cast import lift_dtypes
    from ...runtime.verification.verify import Job, verify

    with tempfile.TemporaryDirectory(prefix="plait-verify-") as scratch:
        subject = subject_of(options, Path(scratch))
        for line in () if options.json else subject.notes:
            print(line, flush=True)
        decision = subject.decision
        folder = Path(options.program or options.keep or Path(scratch, "program"))
        if options.program is None:
            write(decision.wide(subject.model), folder)
        file = Path(scratch, "model.json")
        files.write(file, lift_dtypes(subject.model, "float64"), "plait/model")
        job = Job(
            decision.name,
            str(folder),
            subject.source,
            str(file),
            batch=decision.batch,
            seq=subject.seq,
            steps=options.steps,
        )
        verdict = verify([job], decision.ranks, options.timeout)[0]
    if options.json:
        scale = {} if subject.scale is None else {"scale": subject.scale}
        show(
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
        raise VerifyError(f"{decision.name}: the program differs from one process")
    return 0


def subject_of(options: argparse.Namespace, scratch: Path) -> Subject:
    """What the command line asks to verify; files that it needs are written to `scratch`."""
    if options.scale == "tiny":
        from .verify_tiny import tiny

        return tiny(options, scratch)
    decision = read_decision(Path(options.plan))
    ranks = options.ranks or decision.ranks
    if ranks != decision.ranks:
        raise MismatchError(
            f"{options.plan} is for {decision.ranks} ranks, --ranks says {ranks}; "
            "--scale tiny verifies a plan on fewer"
        )
    model = load_model(options, decision.batch)
    return Subject(decision, model, options.source, options.seq)
