"""Command lines and launch scripts as the flags that they set.

    TP=${TP:-8}                            variables, with defaults
    ARGS=(--a-b $TP --flag)                arrays
    ARGS="--a-b $TP \\                      text of flags
          --flag"
    torchrun train.py ${ARGS[@]} --c.d=8   flags of the command

A script is read, not run: flags count wherever they stand. A variable that nothing assigns, or that
branches assign different values, keeps its name (`$TP`), and so do the flags that it is the value of.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

Settings = dict[str, Any]
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?[-=]([^}]*))?\})")
LIST_EXPANSION = re.compile(r"\$\{?\w*(?:\[[@*]\]\}|@)")
FLAGS = re.compile(r"(?:^|\s)--\w")
POLICY = re.compile(r"activation[-_]checkpoint:([\w-]+)")
END_OF_LINE = "\n"
SYNTAX = "();<>|&" + END_OF_LINE


def parse_flags(text: str, script: bool = False) -> Settings:
    """Settings of a command line, or of a shell script: `--a-b 8`, `--a.b=8`, `--flag`, `a-b:full` for a
    policy. In a script, flags end with their line. Raises ValueError for text that no shell reads.
    """
    settings: Settings = {}
    name, values = "", list[str]()
    for token in [*_tokens(text, script, {}), "--"]:
        policy = POLICY.fullmatch(token)
        if policy:
            settings["activation_checkpoint"] = {"mode": policy[1].replace("-", "_")}
        elif token.startswith("--"):
            _put(settings, name, values)
            name, _, value = token[2:].partition("=")
            values = [value] if value else []
        elif token == END_OF_LINE:
            _put(settings, name, values)
            name = ""
        elif name:
            values.append(token)
    return settings


def _tokens(text: str, script: bool, variables: dict[str, str | None]) -> Iterator[str]:
    """Tokens with variables in place, those inside texts of flags too; END_OF_LINE where no value of the
    flag before can follow. `variables` that branches assign different values are None."""
    for token in _split(text, script):
        assignment = ASSIGNMENT.fullmatch(token)
        if assignment is not None and not token.startswith("-"):
            name, value = assignment[1], _filled(assignment[2], variables)
            yield END_OF_LINE
            if FLAGS.search(value):
                yield from _tokens(value, script, variables)
            elif value:
                known = variables.get(name, value)
                variables[name] = value if known == value else None
        elif (token and set(token) <= set(SYNTAX)) or LIST_EXPANSION.match(token):
            yield END_OF_LINE
        else:
            yield _filled(token, variables)


def _split(text: str, script: bool) -> Iterator[str]:
    """Tokens as a shell splits them, signs of its syntax apart, and in scripts the ends of lines."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    command = re.sub(r"\\[ \t]*(?:\n|$)", " ", "\n".join(lines))
    lexer = shlex.shlex(command, posix=True, punctuation_chars=SYNTAX if script else False)
    lexer.whitespace_split = True
    lexer.whitespace = " \t\r" if script else " \t\r\n"
    return lexer


def _filled(text: str, variables: dict[str, str | None]) -> str:
    """Text with the variables that have a value."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        known = variables.get(name) if name in variables else match[3]
        return match[0] if known is None else known

    return VARIABLE.sub(value, text)


def _put(settings: Settings, name: str, values: Sequence[str]) -> None:
    """Set `a.b` in nested settings."""
    *parents, last = name.replace("-", "_").split(".")
    table = settings
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ValueError(f"{parent}: both a value and a section")
    if last:
        table[last] = values[0] if values else "true"
