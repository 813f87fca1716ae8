"""Sparse matrices that a forward makes of its edges: `torch.sparse_coo_tensor` and products with it.

A matrix stays its indices [2 n] and values [n]: its product with [m d] is a sum of rows by index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import TraceError
from ..locate import current_user_line

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


def sparse_refused(name: str) -> TraceError:
    return TraceError(
        f"{current_user_line()}: {name} of sparse tensors: products of matrices that sparse_coo_tensor "
        "makes with its sizes are traced; else use index_add, or a dense matrix"
    )
