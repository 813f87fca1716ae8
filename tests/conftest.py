"""What tests share: every model of the zoo, traced once."""

import pytest

from plait.tests import zoo
from plait.tests.golden import golden, pytest_addoption

__all__ = ["golden", "pytest_addoption", "traced"]


@pytest.fixture(scope="session")
def traced():
    """`traced(name)`: the model of the zoo in training mode, traced the first time it is asked."""
    from plait.ir.capture import trace

    found = {}

    def of(name):
        if name not in found:
            module, batch = zoo.ZOO[name]()
            found[name] = trace(module.train(), batch)
        return found[name]

    return of
