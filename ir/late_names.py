"""Names of a package that load when they are first asked for."""

TYPE_CHECKING = False  # typing.TYPE_CHECKING costs a module; checkers know the name
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def late_names(package: str, modules: "Mapping[str, str]") -> "Callable[[str], Any]":
    """A package's `__getattr__`: `modules` has the module of every name, by its whole name or, after
    a dot, inside the package."""

    def load(name: str) -> "Any":
        from importlib import import_module  # costs a module, as above

        if name not in modules:
            nearest = import_module("plait.ir.unknown_name").nearest
            near = None if name.startswith("_") else nearest(name, modules)
            hint = f"; did you mean {near}?" if near else ""
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        return getattr(import_module(modules[name], package), name)

    return load
