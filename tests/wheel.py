"""Install the wheel in a folder of its own and use it: `python tests/wheel.py FOLDER`.

Exits 1 when a file is missing or a command fails. Run by `make wheel`: the package list and the data
files of pyproject.toml are kept by hand, so a wheel is held against the tree. A traced model is planned,
explained and drawn from the wheel, outside the clone, where neither torch nor transformers can be
imported.
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


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
import plait
from plait.api.cli import main
assert plait.__file__.startswith(sys.argv[1]), plait.__file__
for line in (
    "plan model.json --cluster 8xh100 -o plan.json",
    "explain plan.json",
    "explain plan.json --why-not tp=8",
    "diff plan.json --against ddp,fsdp",
    "view plan.json --model model.json",
    "clusters",
    "check plan.json",
):
    if main(line.split()):
        sys.exit(line)
"""


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
        source = f"{ROOT / 'examples' / 'small_llama.py'}:make"
        run([sys.executable, "-m", "plait", "trace", source, "-o", "model.json"], place)
        run([sys.executable, "-c", WITHOUT_TORCH, place], place)
    print(f"{wheel.name}: {len(expected())} files; it plans and draws without torch")


def run(command: list[str], folder: str) -> None:
    """Run with the wheel that lies in `folder`, and nothing else of ours."""
    path = os.environ | {"PYTHONPATH": folder}
    done = subprocess.run(command, cwd=folder, env=path, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)[:200]}: {done.stdout[-500:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
