"""A small model and a plan of it, as files."""

import pytest

from plait.api.cli import main


@pytest.fixture(scope="package")
def files(tmp_path_factory, llama_file):
    """The model's and the plan's: two stages of four replicas."""
    folder = tmp_path_factory.mktemp("files")
    model, made = llama_file, str(folder / "plan.json")
    assert main(["plan", model, "--cluster", "8xh100", "--pin", "*:pp=2,dp=4", "-o", made]) == 0
    return model, made
