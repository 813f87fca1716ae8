"""Files: canonical bytes, and whatever is broken is one clear error that says where."""

import json
import random

import pytest

from plait.ir.errors import FileError
from plait.ir.files.json_files import DEEPEST, digest, dump, load
from plait.ir.model.model import (
    Call,
    Function,
    Input,
    Model,
    ModelInput,
    Op,
    Output,
    Parameter,
    Ref,
)
from plait.ir.model.tensor import TensorType

FORMAT = "plait/model"
ODD = (
    None,
    True,
    -1,
    0,
    1 << 40,
    1.5,
    "",
    "x" * 50,
    "\ud7ff",
    [],
    {},
    [[]],
    {"format": 1},
    ["a", 1],
)


def small() -> Model:
    """y = x w, twice."""
    f32 = TensorType((4, 4), "float32")
    inputs = (Input(0, "parameter", "w", 4), Input(1, "activation", "x", None))
    ops = (
        Op("aten.mm.default", (Ref(1), Ref(0)), {}, (2,), "layer"),
        Op("aten.sum.dim", (Ref(3), (0, -1), True), {"dtype": "dtype:float32"}, (4, -1)),
    )
    linear = Function("linear", (f32,) * 5, inputs, (Output(2, 3),), ops, 1)
    calls = tuple(
        Call("linear", f"layers.{i}", (f"w{i}",), (x,), (y,))
        for i, x, y in ((0, "x", "h"), (1, "h", "y"))
    )
    parameters = tuple(Parameter(f"w{i}", f32, "parameter", True, (f"tied{i}",)) for i in (0, 1))
    return Model(
        "Net ✓ \u2028",
        (linear,),
        calls,
        parameters,
        (ModelInput("x", f32, ("x", 0), True),),
        "y",
        4,
    )


def read(text: str | bytes) -> Model:
    return load(text.encode() if isinstance(text, str) else text, Model, FORMAT)


def test_what_is_written_is_read():
    assert read(dump(small(), FORMAT)) == small()
    assert dump(small(), FORMAT) == dump(read(dump(small(), FORMAT)), FORMAT)


def test_the_bytes_are_canonical():
    text = dump(small(), FORMAT).decode()
    assert list(json.loads(text))[:3] == ["format", "version", "name"]
    assert digest(small()) == digest(small())
    assert digest(small()) != digest(
        Model(*[*(small().__getattribute__(f) for f in small().__struct_fields__[:-1]), 8])
    )


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(dump(small(), FORMAT)), **fields})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "not an object"),
        (b"\xff\xfe{}", "not UTF-8"),
        ('{"format": "plait/plan", "version": 1}', "format"),
        ('{"format": ["plait/model"], "version": 1}', "format"),
        (changed(version=3), r"\$\.version: 3"),
        (changed(version=True), r"\$\.version"),
        (changed(version=1.0), r"\$\.version"),
        (changed(surprise=1), r"\$\.surprise"),
        (
            changed(
                inputs=[
                    {
                        "name": "x",
                        "more": 1,
                        "type": [[4], "float32"],
                        "path": ["x"],
                        "batched": True,
                    }
                ]
            ),
            r"\$\.inputs\[0\]\.more: unknown",
        ),
        (changed(batch="four"), r"\$\.batch"),
        (changed(batch=1 << 63), "64 bits"),
        (changed(batch=float("nan")), "NaN"),
        (changed(batch=float("inf")), "Infinity"),
        (changed(calls=[{"function": 3}]), r"\$\.calls\[0\]"),
        (changed(name=None), r"\$\.name"),
        ('{"format": "plait/model", "format": "plait/model"}', "format.*twice"),
        ('{"format": "plait/model", "version": 1, "name": 1e999}', "double"),
        ("[" * 100_000, "nested"),
        ('{"a":' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "nested"),
        ('"' + "\\" * 20_001, "not JSON"),
        ('"' + '\\"' * 500_000, "characters"),
        (changed(name="y" * 100_000), "characters"),
        (changed(name="\ud800"), r"\$\.name: half of a surrogate pair"),
    ],
)
def test_what_is_broken_says_where(text, says):
    with pytest.raises(FileError, match=says):
        read(text)


def test_too_large_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("plait.ir.files.json_files.MOST_BYTES", 10)
    with pytest.raises(FileError, match="at most 10"):
        read("{" + " " * 20)


def test_random_bytes_are_read_equal_or_refused():
    dice, good = random.Random(0), dump(small(), FORMAT)
    refused = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(len(data))
            change = dice.choice(("flip", "cut", "insert", "end"))
            if change == "flip":
                data[place] ^= 1 << dice.randrange(8)
            elif change == "cut":
                del data[place : place + dice.randint(1, 30)]
            elif change == "insert":
                data[place:place] = dice.choice(
                    (b'"', b"{", b"]", b"9" * 25, b"NaN", b"\x00", b"\\")
                )
            else:
                del data[place:]
            data = data or bytearray(b"0")
        refused += not accepted(bytes(data))
    assert refused > 300


def test_random_values_are_read_equal_or_refused():
    dice, good = random.Random(1), json.loads(dump(small(), FORMAT))
    refused = 0
    for _ in range(400):
        data = json.loads(json.dumps(good))
        spot, key = dice.choice(list(places(data)))
        if dice.random() < 0.2 and isinstance(spot, dict):
            del spot[key]
        else:
            spot[key] = dice.choice(ODD)
        refused += not accepted(json.dumps(data).encode())
    assert refused > 200


def places(data):
    """Every (container, key) of a JSON value."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield data, key
        if isinstance(value, dict | list):
            yield from places(value)


def accepted(data: bytes) -> bool:
    """Whether it is read; then writing it and reading again gives the same. Only FileError may rise."""
    try:
        value = load(data, Model, FORMAT)
    except FileError:
        return False
    assert load(dump(value, FORMAT), Model, FORMAT) == value
    return True
