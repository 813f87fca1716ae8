"""A second trace of a configuration comes from the user's cache, unless it is harmed or open."""

from plait.api.formats.trace_cache import cached_trace


def test_a_second_trace_is_read(traced, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, model, traces = tmp_path / "config.json", traced("llama"), []
    file.write_text("{}")

    def read(question: object = (2, 8)) -> int:
        """Traces that there were when the model was there."""
        again = cached_trace(file, question, lambda: traces.append(1) or model)
        assert (again, repr(again)) == (model, repr(model))
        return len(traces)

    assert [read(), read(), read((4, 8)), read()] == [1, 1, 2, 2]
    folder = tmp_path / "cache" / "plait" / "traces"
    for trace in folder.iterdir():
        trace.write_bytes(trace.read_bytes()[:-1])
    assert [read(), read()] == [3, 3]  # none is read that is harmed
    folder.chmod(0o777)
    assert [read(), read()] == [4, 5]  # nor one that others can write
    folder.chmod(0o700)
    file.write_text("{ }")
    assert [read(), read()] == [6, 6]
