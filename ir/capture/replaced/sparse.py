"""Sparse matrices that a forward makes of its edges (`torch.sparse_coo_tensor`), or a model keeps, as
attribute or buffer; and products with them.

A matrix stays its indices [2 n] and values [n]: its product with [m d] is a sum of rows by index. Those
of a matrix that the model keeps are constants of the program.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import TraceError
from ..locate import current_user_line
from ..torch_private import is_fake, outside_modes

PRODUCTS = {"mm", "_sparse_mm", "matmul", "spmm", "mv"}


class SparseMatrix:
    """What stands for a sparse matrix while a model is recorded."""

    def __init__(self, indices: Any, values: Any, size: Any) -> None:
        indices = torch.as_tensor(indices)
        self.row, self.column = indices[0], indices[1]
        self.content, self.shape = torch.as_tensor(values), torch.Size(size)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in PRODUCTS and not kwargs and isinstance(args[0], cls) and len(args) == 2:
            return args[0] @ args[1]
        raise sparse_refused(name)

    def __matmul__(self, dense: Tensor) -> Tensor:
        content = self.content.reshape(-1, *(1,) * (dense.dim() - 1))
        rows = dense[self.column] * content.to(dense.dtype)
        return rows.new_zeros(self.shape[0], *dense.shape[1:]).index_add(0, self.row, rows)

    def __getattr__(self, name: str) -> Any:
        raise sparse_refused(name)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def coalesce(self) -> SparseMatrix:
        return self

    def t(self) -> SparseMatrix:
        indices = torch.stack([self.column, self.row])
        return SparseMatrix(indices, self.content, self.shape[::-1])

    def to_dense(self) -> Tensor:
        dense = self.content.new_zeros(self.shape)
        return dense.index_put((self.row, self.column), self.content, accumulate=True)


def sparse_matrix(args: Any, kwargs: Any) -> SparseMatrix:
    """What stands for `torch.sparse_coo_tensor(indices, values, size)` of a matrix."""
    named = dict(zip(("indices", "values", "size"), args, strict=False)) | kwargs
    size = named.get("size")
    if size is None or len(size) != 2 or torch.as_tensor(named["values"]).dim() != 1:
        raise sparse_refused("sparse_coo_tensor")
    return SparseMatrix(named["indices"], named["values"], size)


def is_sparse(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout != torch.strided


def call_with_sparse(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """A call with a sparse tensor that the model keeps: a product, or what is worked out now."""
    if name in PRODUCTS | {"__matmul__"} and is_sparse(args[0]) and len(args) == 2 and not kwargs:
        if is_fake(args[0]) or args[0].dim() != 2:
            raise sparse_refused(name)
        with outside_modes():
            matrix = args[0].detach().to_sparse_coo().coalesce()
            indices, values = matrix.indices().clone(), matrix.values().clone()
        return SparseMatrix(indices, values, matrix.shape) @ args[1]
    if any(isinstance(a, Tensor) and not is_sparse(a) for a in args) or is_fake(args[0]):
        raise sparse_refused(name)
    with outside_modes():
        result = func(*args, **kwargs)
        # indices and values of a matrix are views of it, which have no fake tensors
        return result.clone() if isinstance(result, Tensor) and not is_sparse(result) else result


def sparse_refused(name: str) -> TraceError:
    return TraceError(
        f"{current_user_line()}: {name} of sparse tensors: products with a dense matrix are traced, "
        "of a matrix that the model keeps, or that sparse_coo_tensor makes with its sizes; "
        "else use index_add, or a dense matrix"
    )
