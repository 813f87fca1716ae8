"""Install the wheel in a folder of its own and use it: `python tests/wheel.py FOLDER`.

Exits 1 when a file is missing. Run by `make wheel`: the package list and the data files of
pyproject.toml are kept by hand, so a wheel is held against the tree.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("ir", "cost_model", "planner", "codegen", "runtime", "api")
DATA = {".py", ".toml", ".h", ".html", ".js", ".css", ".json"}


def expected() -> set[str]:
    """Every file of the source that a user needs, as it is named in the wheel."""
    files = [p for room in ROOMS for p in (ROOT / room).rglob("*") if p.suffix in DATA]
    files += [ROOT / name for name in ("__init__.py", "__main__.py", "py.typed")]
    return {f"plait/{p.relative_to(ROOT)}" for p in files if "__pycache__" not in p.parts}


def main(folder: Path) -> None:
    (wheel,) = folder.glob("plait-*.whl")
    missing = expected() - set(zipfile.ZipFile(wheel).namelist())
    if missing:
        sys.exit(f"{wheel.name} lacks {', '.join(sorted(missing))}")
    with tempfile.TemporaryDirectory() as place:
        zipfile.ZipFile(wheel).extractall(place)
        code = "import plait, sys; print(plait.__file__); sys.exit(not plait.__all__)"
        command = [sys.executable, "-c", code]
        path = os.environ | {"PYTHONPATH": place}
        done = subprocess.run(
            command, cwd=place, env=path, capture_output=True, text=True, check=True
        )
        if not done.stdout.startswith(place):
            sys.exit(f"imported {done.stdout.strip()} instead of the wheel")
    print(f"{wheel.name}: {len(expected())} files, and it imports")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
