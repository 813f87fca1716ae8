"""What tests share: every model of the zoo, traced once, and ranks that are forked."""

import gc

import pytest

from plait.api.commands import output
from plait.runtime.verification import verify
from plait.tests import ranks, reports, zoo
from plait.tests.golden import golden, pytest_addoption
from plait.tests.paths import LLAMA

__all__ = ["golden", "pytest_addoption", "traced"]


@pytest.fixture(scope="session")
def traced():
    """`traced(name)`: the model of the zoo in training mode, traced the first time it is asked."""
    from plait.ir.capture import trace

    models = {}

    def of(name):
        if name not in models:
            module, batch = zoo.ZOO[name]()
            models[name] = trace(module.train(), batch)
        return models[name]

    return of


@pytest.fixture(scope="session")
def llama_file(tmp_path_factory):
    """The file of the small Llama of the examples, as `plait trace` writes it."""
    from plait.api.cli import main

    path = str(tmp_path_factory.mktemp("llama") / "model.json")
    assert main(["trace", LLAMA, "-o", path]) == 0
    return path


@pytest.fixture(scope="session")
def llama(llama_file):
    """The small Llama of the examples, traced."""
    from plait.api import load_model

    return load_model(llama_file)


@pytest.fixture(scope="session", autouse=True)
def _verification_forks_its_ranks():
    """Programs are verified on forked ranks, which start in no time; `tests/runtime/verification` has a
    test that starts them as users do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "launch", ranks.launch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _json_is_as_its_schema_says():
    """Everything that a command prints under --json is one of the reports of its verb."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output, "json_text", reports.checked(output.json_text))
        yield


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the collector need not walk it for every test."""
    gc.collect()
    gc.freeze()
