"""Archives of tensors are read as torch reads them, equal headers once."""

import io
from unittest import mock

import torch

from plait.runtime.checkpoint import stored_tensors
from plait.runtime.checkpoint.stored_tensors import StoredTensors

TENSORS = (
    torch.arange(12.0).reshape(3, 4),
    torch.arange(12.0).reshape(3, 4).t(),  # the same bytes under other strides
    torch.arange(12.0).reshape(3, 4)[1:, ::2],  # part of what is stored
    torch.arange(12.0, dtype=torch.bfloat16).reshape(4, 3),
    torch.tensor([True, False]),
    torch.tensor(2.5 + 1j),
    torch.tensor(7),
    torch.zeros(0, 3),
)


def archive(tensor):
    file = io.BytesIO()
    torch.save(tensor, file)
    return io.BytesIO(file.getvalue()), len(file.getvalue())


def test_values_and_layouts_are_those_of_torch():
    reader = StoredTensors()
    with mock.patch.object(stored_tensors, "_load", wraps=stored_tensors._load) as load:
        for tensor in TENSORS:
            reader.read(*archive(tensor))
        assert load.call_count == len(TENSORS)
        for tensor in (t + t for t in TENSORS):  # of other values, which are contiguous
            assert torch.equal(reader.read(*archive(tensor)), tensor)
        before = load.call_count
        for tensor in TENSORS:
            again = reader.read(*archive(tensor))
            assert torch.equal(again, tensor)
            assert (again.dtype, again.stride()) == (tensor.dtype, tensor.stride())
        assert load.call_count == before + 1  # of nothing there is no header worth keeping


def test_large_tensors_are_read_by_torch(monkeypatch):
    monkeypatch.setattr(stored_tensors, "SMALL_BYTES", 0)
    for tensor in TENSORS:
        assert torch.equal(StoredTensors().read(*archive(tensor)), tensor)
