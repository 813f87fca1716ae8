"""The options of planning, read off the fields of `PlanOptions`: flags, keywords and help."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

import msgspec

from ..ir.errors import UsageError
from ..ir.unknown_name import nearest
from ..planner.question.options import Option, PlanOptions

F = TypeVar("F", bound=Callable[..., Any])


PLAIN = {int: "an int", float: "a number", str: "a text"}  # types that are checked, in words
OF_OPTIMIZERS = ("lr", "weight_decay", "betas", "eps", "momentum")


class DeclaredOption(NamedTuple):
    """A field of `PlanOptions` that people set: `name` is its keyword, with dashes its flag."""

    name: str
    field: str
    annotation: Any
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def number(self) -> type[int] | type[float] | None:
        """The type of a numeric flag; None where the flag takes text."""
        kinds = (self.annotation, *get_args(self.annotation))
        return None if self.option.parse else next((k for k in (int, float) if k in kinds), None)

    @property
    def keyword_type(self) -> Any:
        """What Python callers may give: the field's type, and text where the field has a parser."""
        return self.annotation | str if self.option.parse else self.annotation

    def help_line(self) -> str:
        default: Any = self.default
        if isinstance(default, tuple):
            default = ",".join(cast("tuple[str, ...]", default))
        told = default not in (None, "") and "default" not in self.option.help
        return f"{self.option.help} (default: {default})" if told else self.option.help


@cache
def declared_options() -> Mapping[str, DeclaredOption]:
    """The options by keyword, in the order of their declarations."""
    hints = get_type_hints(PlanOptions, include_extras=True)
    options: dict[str, DeclaredOption] = {}
    for field in msgspec.structs.fields(PlanOptions):
        hint = hints[field.name]
        if get_origin(hint) is Annotated:
            annotation, option = get_args(hint)
            name = option.name or field.name
            options[name] = DeclaredOption(name, field.name, annotation, field.default, option)
    return options


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option, by group. The value of a flag that is not given is None."""
    names = dict.fromkeys(declared.option.group for declared in declared_options().values())
    groups = {name: parser.add_argument_group(name) for name in names}
    for declared in declared_options().values():
        groups[declared.option.group].add_argument(
            declared.flag,
            type=declared.number or str,
            action="append" if declared.option.repeatable else "store",
            choices=declared.option.choices,
            metavar=declared.option.metavar,
            help=declared.help_line().replace("%", "%%"),
        )


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options given on a command line, by keyword."""
    values = {name: getattr(arguments, name) for name in declared_options()}
    return {name: value for name, value in values.items() if value is not None}


def check_keywords(
    function: str, keywords: Mapping[str, Any], *, without: tuple[str, ...] = ()
) -> None:
    """Raise TypeError, with the nearest name there is, for a keyword that is not an option, and
    UsageError for a value of another type than the option's."""
    known = [name for name in declared_options() if name not in without]
    for name, value in keywords.items():
        if name in OF_OPTIMIZERS:
            hint = f"it is the optimizer's: optimizer_args={{{name!r}: …}}"
        elif name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else f"there are: {', '.join(known)}"
        else:
            _check_type(declared_options()[name], value)
            continue
        raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; {hint}")


def _check_type(declared: DeclaredOption, value: Any) -> None:
    """Raise UsageError for a value that is not of the option's type; parsers check their values, and an
    optimizer may be a class."""
    kinds = tuple(k for k in (declared.annotation, *get_args(declared.annotation)) if k in PLAIN)
    if declared.option.parse or not kinds or value is None or declared.name == "optimizer":
        return
    if isinstance(value, (*kinds, int) if float in kinds else kinds) and value is not True:
        return
    near = nearest(str(value).rpartition(".")[2], declared.option.choices or ())
    hint = f"; did you mean {near!r}?" if near else ""
    names = " or ".join(PLAIN[kind] for kind in kinds)
    raise UsageError(
        f"{declared.name}={value!r:.60} is a {type(value).__name__}, not {names}{hint}"
    )


def options_from(keywords: Mapping[str, Any]) -> PlanOptions:
    """Options from keywords or flags; None stands for the default. Raises UsageError for texts that
    cannot be parsed; the search checks the values."""
    values: dict[str, Any] = {}
    for name, value in keywords.items():
        declared = declared_options()[name]
        if value is not None:
            parse = declared.option.parse
            values[declared.field] = parse(value) if parse else value
    return PlanOptions(**values)


def takes_options(*, without: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Show the options that a function takes as `**options` in its signature and docstring.

    `without`: options that the function does not take, or takes in a form of its own."""

    def decorate(function: F) -> F:
        declared = [d for name, d in declared_options().items() if name not in without]
        signature = inspect.signature(function)
        explicit = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                d.name, inspect.Parameter.KEYWORD_ONLY, default=d.default, annotation=d.keyword_type
            )
            for d in declared
        ]
        function.__signature__ = signature.replace(parameters=[*explicit, *added])  # type: ignore[attr-defined]
        text = inspect.cleandoc(function.__doc__ or "")
        function.__doc__ = "\n".join([text, "", "Options:", *_documented(declared)])
        return function

    return decorate


def _documented(options: list[DeclaredOption]) -> Iterator[str]:
    for declared in options:
        text = f"{declared.name}: {declared.help_line()}"
        if declared.option.choices:
            text += f"; one of {', '.join(declared.option.choices)}"
        yield from textwrap.wrap(text, 96, initial_indent="    ", subsequent_indent="        ")
