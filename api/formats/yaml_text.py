"""YAML as plain data: no tags, no aliases, no key twice. Needs the package pyyaml."""

from __future__ import annotations

from typing import Any

from ...ir.errors import FileError, UsageError

DEEPEST = 60


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; raises FileError naming the line, UsageError without the package."""
    try:
        import yaml
    except ImportError:
        raise UsageError("YAML files need the package pyyaml: pip install pyyaml") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise FileError(f"$: not YAML{where}") from None
    if node is None:
        return {}
    _check(node, set(), 0)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise FileError(f"$: not plain YAML: {str(error)[:100]}") from None


def _check(node: Any, seen: set[int], depth: int) -> None:
    """Refuse aliases, keys that stand twice and absurd depth."""
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise FileError(f"$: an alias (line {line}); write the value out")
    if depth > DEEPEST:
        raise FileError(f"$: nested deeper than {DEEPEST} (line {line})")
    seen.add(id(node))
    if node.id == "mapping":
        names: set[str] = set()
        for key, value in node.value:
            if key.id != "scalar" or key.value in names:
                raise FileError(f"$: a key that is no name or stands twice (line {line})")
            names.add(key.value)
            _check(value, seen, depth + 1)
    elif node.id == "sequence":
        for item in node.value:
            _check(item, seen, depth + 1)
