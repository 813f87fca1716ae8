"""`plait completion`: a script by which a shell completes commands, options and their values."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SCRIPT = """\
# {shell}: eval "$(plait completion {shell})", or this text in a file that the shell reads
{preamble}_plait() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" known=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=( $(compgen -W "{commands}" -- "$word") )
    return
  fi
  case "${{COMP_WORDS[1]}} $before" in
{values}
  esac
  if [ -z "$known" ] && [ "${{word#-}}" != "$word" ]; then
    case "${{COMP_WORDS[1]}}" in
{options}
    esac
  fi
  if [ -n "$known" ]; then
    COMPREPLY=( $(compgen -W "$known" -- "$word") )
  else
    COMPREPLY=( $(compgen -f -- "$word") )
  fi
}}
complete -o filenames -F _plait plait
"""
PREAMBLES = {"bash": "", "zsh": "autoload -Uz bashcompinit && bashcompinit\n"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=tuple(PREAMBLES), help="bash or zsh")


def run(arguments: argparse.Namespace) -> int:
    from .table import COMMANDS

    parsers: dict[str, argparse.ArgumentParser] = {}
    for command in COMMANDS:
        parsers[command.name] = argparse.ArgumentParser()
        command.module().add_arguments(parsers[command.name])
    print(
        SCRIPT.format(
            shell=arguments.shell,
            preamble=PREAMBLES[arguments.shell],
            commands=" ".join(parsers),
            values="\n".join(_values(parsers)),
            options="\n".join(_options(parsers)),
        ),
        end="",
    )
    return 0


def _values(parsers: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    """A case for every option with a fixed set of values."""
    for name, parser in parsers.items():
        for action in parser._actions:
            if action.choices is not None:
                values = " ".join(map(str, action.choices))
                for flag in action.option_strings or (name,):
                    yield f'    "{name} {flag}") known="{values}" ;;'


def _options(parsers: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    for name, parser in parsers.items():
        flags = [f for action in parser._actions for f in action.option_strings if f[:2] == "--"]
        yield f'      {name}) known="{" ".join(flags)}" ;;'
