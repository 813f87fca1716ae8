"""Compiled functions come from a private, checked cache; what is wrong there is removed and redone."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from plait.cost_model import compiled as module
from plait.cost_model.compiled import FunctionCache, compiled, private_directory
from plait.cost_model.placement.arrays import sort_by


def doubled(x):
    return 2 * x


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("owned"),))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DIRECTORY", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a_function_is_compiled_once_and_damage_is_removed(cache):
    assert compiled(doubled)(21) == 42
    (file,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    whole = file.read_bytes()
    again = compiled(doubled)
    assert again(21) == 42
    assert not again.stats.cache_misses or file.read_bytes() == whole
    for damaged in (b"", whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        file.write_bytes(damaged)
        assert compiled(doubled)(21) == 42
        assert len(file.read_bytes()) == len(whole)


def test_a_hostile_file_without_its_checksum_runs_nothing(cache):
    assert compiled(doubled)(1) == 2
    (file,) = cache.iterdir()
    file.write_bytes(pickle.dumps(Payload()))
    assert compiled(doubled)(1) == 2
    assert not Path("owned").exists()


def test_a_directory_that_others_can_write_to_is_not_used(cache):
    cache.mkdir()
    cache.chmod(0o777)
    assert private_directory(cache) is None
    assert compiled(doubled)(4) == 8
    assert not list(cache.iterdir())


def test_another_function_or_constant_is_another_file(cache):
    texts = {tuple(module.sources(f, set())) for f in (compiled(doubled), compiled(lambda x: x))}
    assert len(texts) == 2
    assert isinstance(compiled(doubled)._cache, FunctionCache)


def test_an_inner_function_has_no_form_for_python() -> None:
    """Called with types that it was compiled for, it would end the process."""
    order = np.zeros(3, np.int64)
    for _ in range(2):
        with pytest.raises(TypeError, match="sort_by is called by compiled functions only"):
            sort_by(np.zeros(3), order, 3)
