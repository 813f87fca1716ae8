"""The parser of the command line: short errors that name what was probably meant."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from typing import Any, NoReturn

from ..ir.errors import UsageError
from ..ir.unknown_name import nearest, unknown_name

MOST_IN_USAGE = 10  # options
NOT_A_NUMBER = re.compile(r"argument (\S+): invalid (int|float) value: (.*)")
NO_VALUE = re.compile(r"argument (\S+): expected one argument")


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are two lines, without the list of all options."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def shorten_usage(self) -> None:
        """Name only what must be there, where the list of all options is longer than their help."""
        flags = [action for action in self._actions if action.option_strings]
        if len(flags) <= MOST_IN_USAGE:
            return
        formatter = self._get_formatter()
        needed = [action for action in self._actions if action.required]
        formatter.add_usage(None, needed, self._mutually_exclusive_groups, "")
        self.usage = " ".join(formatter.format_help().split()).replace("%", "%%") + " [options]"

    def error(self, message: str) -> NoReturn:
        message = _plain(message)
        text = f"{self.prog}: {message}\nsee {self.prog} --help"
        print(text, file=sys.stderr)
        sys.exit(UsageError.exit_code)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            kind = (action.metavar if isinstance(action.metavar, str) else action.dest).lower()
            raise argparse.ArgumentError(
                None, unknown_name(kind, str(value), map(str, action.choices))
            )

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """As argparse; an option that there is not is named before one that is missing, unless the rest
        of the line is another program's."""
        rest = any(action.nargs == argparse.REMAINDER for action in self._actions)
        if self._subparsers is None and not rest:
            for part in itertools.takewhile(lambda part: part != "--", args or ()):
                self._check_option(part.partition("=")[0])
        return super().parse_known_args(args, namespace)

    def _check_option(self, name: str) -> None:
        flags = [flag for action in self._actions for flag in action.option_strings]
        if name.startswith("--") and not any(flag.startswith(name) for flag in flags):
            near = nearest(name, [flag for flag in flags if flag.startswith("--")])
            hint = f"; did you mean {near}?" if near else ""
            self.error(f"unknown option {name}{hint}")


def _plain(message: str) -> str:
    """A message of argparse in other words, where its own speak of Python's types."""
    if match := NOT_A_NUMBER.fullmatch(message):
        name, kind, value = match.groups()
        return f"{name} takes a {'whole ' if kind == 'int' else ''}number, not {value}"
    if match := NO_VALUE.fullmatch(message):
        return f"{match[1]} needs a value; one that begins with - is written {match[1]}=-1"
    return message
