"""Pictures of six pages for the documents, as a browser draws them (`make pictures`).

python -m plait.tests.api.view.pictures docs/pictures
"""

import sys
import tempfile
from pathlib import Path

from plait.tests.api.view.conftest import write_pages
from plait.tests.browser import Browser

WIDTH = 1200
# the page, and how many pixels of it from its top; 0: all of it
PICTURES = {
    "sharded": 1180,
    "interleaved": 0,
    "experts": 0,
    "mixed-cluster": 0,
    "placement": 0,
    "two-plans": 1500,
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as pages, Browser() as browser:
        written = {page.stem: page for page in write_pages(Path(pages))}
        for name, height in PICTURES.items():
            page = browser.open(written[name], WIDTH, height=height or 900)
            (folder / f"{name}.png").write_bytes(page.picture(height))
            page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
