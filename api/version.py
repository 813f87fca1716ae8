"""The version of the package, as `pip` knows it or as a checkout says."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def _of_checkout() -> str:
    """`0.1.0+checkout`, of a clone that was never installed."""
    project = Path(__file__).parent.parent / "pyproject.toml"
    if not project.exists():
        return "0+unknown"
    return f"{tomllib.loads(project.read_text(encoding='utf-8'))['project']['version']}+checkout"


try:
    VERSION = version("plait")
except PackageNotFoundError:
    VERSION = _of_checkout()
