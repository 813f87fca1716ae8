"""Methods that compute each result once and keep it with their object."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

Owner = TypeVar("Owner")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
UNKNOWN = object()  # not computed yet; None may be a result


def cached_method(
    method: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Result]:
    """Keep every result of a method with its object, by positional arguments, which are hashable.

    The object holds its results, so both go together; the object itself need not be hashable. A
    method may call itself for other arguments.
    """
    name = f"_results_of_{method.__name__}"

    @wraps(method)
    def cached(self: Owner, /, *arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        assert not keywords, f"{method.__name__} takes its arguments by position"
        state: dict[str, Any] = vars(self)
        results: dict[tuple[object, ...], Any] = state.get(name) or state.setdefault(name, {})
        result = results.get(arguments, UNKNOWN)
        if result is UNKNOWN:
            result = results[arguments] = method(self, *arguments, **keywords)
        return result

    return cached
