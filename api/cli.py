"""`plait VERB …`: results on stdout, notes on stderr, exit codes by kind of error."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence

from ..ir.errors import InfeasibleError, PlaitError
from .commands import verbs

GARBAGE = 200_000  # objects between collections: a trace makes many and drops few


def parser() -> argparse.ArgumentParser:
    """The whole command line; building it loads neither torch nor a solver."""
    top = argparse.ArgumentParser(
        prog="plait",
        description="Plan and run PyTorch training on many devices.",
        epilog="exit codes: 0 done, 2 usage, 3 infeasible, 4 time limit, 5 model cannot be traced, "
        "6 file broken or not matching, 7 verification failed",
    )
    rows = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in verbs.VERBS:
        sub = rows.add_parser(verb.name, help=verb.about, description=verb.about)
        verb.arguments(sub)
        sub.set_defaults(run=verb.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    gc.set_threshold(GARBAGE)
    options = parser().parse_args(argv)
    try:
        code = int(options.run(options) or 0)
        gc.freeze()  # what is left is freed with the process, not object by object
        return code
    except PlaitError as error:
        print(f"plait: {error}", file=sys.stderr)
        if isinstance(error, InfeasibleError) and error.report and options.json:
            print(json.dumps(error.report, indent=1))
        return error.exit_code
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("plait: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
