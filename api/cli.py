"""`plait COMMAND …`: results on stdout, notes on stderr, exit codes by kind of error."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from ..ir.errors import FileError, InfeasibleError, PlaitError
from .commands.output import print_json
from .commands.table import COMMANDS, overview
from .parser import CommandParser
from .version import VERSION

EXAMPLE = """first steps:
  plait plan examples/small_llama.py:make --cluster 8xh100 -o plan.json
  plait explain plan.json
  plait view plan.json"""
EXIT_CODES = """exit codes:
  0 done, 2 usage, 3 infeasible, 4 time limit, 5 model cannot be traced,
  6 file broken or not matching, 7 verification failed"""
OBJECTS_PER_COLLECTION = 200_000  # a trace makes many objects and drops few


def command_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line. Where `only` one command is needed, the modules of the others stay
    unloaded, and they have no arguments; `""` loads none."""
    parser = CommandParser(
        prog="plait",
        description="Plan and run PyTorch training on many devices.",
        usage="plait COMMAND ...",
        epilog=f"{overview()}\n\n{EXAMPLE}\n\n{EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, help=argparse.SUPPRESS, prog="plait"
    )
    for command in COMMANDS:
        epilog = "\n".join(["examples:", *(f"  {line}" for line in command.examples())])
        subparser = commands.add_parser(command.name, description=command.help, epilog=epilog)
        if only in (None, command.name):
            module = command.module()
            module.add_arguments(subparser)
            subparser.shorten_usage()
            subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    gc.set_threshold(OBJECTS_PER_COLLECTION)
    line = list(sys.argv[1:] if argv is None else argv)
    name = next((part for part in line if not part.startswith("-")), "")
    arguments = command_parser(name).parse_args(line)
    try:
        _check_output(arguments)
        code = int(arguments.run(arguments))
        gc.freeze()  # what is left is freed with the process, not object by object
        return code
    except PlaitError as error:
        print(f"plait: {error}", file=sys.stderr)
        if (
            isinstance(error, InfeasibleError)
            and error.report
            and getattr(arguments, "json", False)
        ):
            print_json(error.report)
        return error.exit_code
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("plait: interrupted", file=sys.stderr)
        return 130


def _check_output(arguments: argparse.Namespace) -> None:
    """Raise FileError before the work, not after it, where its result could not be written."""
    output = getattr(arguments, "output", None)
    if output and arguments.command not in ("compile", "kernels"):  # they make folders
        folder = Path(output).absolute().parent
        if not folder.is_dir():
            raise FileError(f"{output}: there is no folder {folder}")


if __name__ == "__main__":
    sys.exit(main())
