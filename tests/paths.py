"""Where the repository and its examples are, for tests that name files."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
LLAMA = f"{EXAMPLES / 'small_llama.py'}:make"
