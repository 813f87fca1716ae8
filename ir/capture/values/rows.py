"""Which functions compute every row of their operand apart, so that all rows stand for those selected.

A function that mixes rows (a sort, a sum over them, a shift) has another meaning for fewer rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# fmt: off
ELEMENTWISE = {
    "add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "rsub", "mul", "__mul__", "__rmul__",
    "div", "__truediv__", "__rtruediv__", "true_divide", "floor_divide", "__floordiv__", "remainder",
    "__mod__", "fmod", "neg", "__neg__", "square", "pow", "__pow__", "__rpow__", "abs", "__abs__", "exp",
    "exp2", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tan",
    "asin", "acos", "atan", "atan2", "erf", "lgamma", "digamma", "float", "double", "half", "bfloat16",
    "int", "long", "bool", "to", "type", "type_as", "sigmoid", "tanh", "relu", "relu6", "gelu", "silu",
    "mish", "elu", "selu", "celu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "softplus",
    "softsign", "tanhshrink", "logsigmoid", "clamp", "clamp_min", "clamp_max", "clip", "detach", "clone",
    "contiguous", "where", "masked_fill", "minimum", "maximum", "min", "max", "lerp", "addcmul",
    "addcdiv", "logaddexp", "sign", "floor", "ceil", "round", "trunc", "frac", "nan_to_num", "isnan",
    "isfinite", "isinf", "eq", "ne", "lt", "le", "gt", "ge", "__eq__", "__ne__", "__lt__", "__le__",
    "__gt__", "__ge__", "logical_and", "logical_or", "logical_not", "logical_xor", "__and__", "__or__",
    "__xor__", "__invert__", "bitwise_and", "bitwise_or", "bitwise_not", "zeros_like", "ones_like",
    "full_like", "empty_like", "dropout", "xlogy", "special_logit", "logit", "cosh", "sinh", "fill_",
    "iadd", "__iadd__", "__isub__", "__imul__", "__itruediv__", "add_", "sub_", "mul_", "div_",
    "binary_cross_entropy_with_logits", "binary_cross_entropy", "mse_loss", "l1_loss", "smooth_l1_loss",
    "huber_loss", "requires_grad_", "alpha_dropout", "feature_alpha_dropout", "rrelu", "threshold",
}
# the last dimensions of a row, never the first of the rows
WITHIN = {"linear", "layer_norm", "rms_norm", "embedding", "one_hot", "bilinear", "prelu"}
# along a dimension that an argument names
ALONG = {
    "sum", "mean", "max", "min", "amax", "amin", "prod", "norm", "logsumexp", "argmax", "argmin", "all",
    "any", "topk", "sort", "argsort", "softmax", "log_softmax", "normalize", "cumsum", "cumprod", "std",
    "var", "flip", "squeeze", "chunk", "split", "unbind", "select", "narrow", "gather", "cat", "concat",
    "stack", "unsqueeze", "glu", "tensor_split", "cosine_similarity", "log_softmax_", "vector_norm",
    "index_select", "gumbel_softmax", "split_with_sizes", "roll", "unflatten", "movedim",
    "count_nonzero",
}
VIEWS = {"view", "reshape", "flatten", "transpose", "permute", "swapaxes", "expand"}
FLAT = ("view", "reshape", "flatten")
FACTS = {
    "dtype", "device", "layout", "requires_grad", "is_cuda", "ndim", "grad_fn", "is_sparse", "is_nested",
    "is_quantized", "is_meta", "is_leaf", "names", "grad",
}
QUESTIONS = {"dim", "ndimension", "is_floating_point", "is_complex", "is_contiguous", "get_device"}
# where the dimension stands among the arguments, and what it is by default
PLACES: dict[str, tuple[int, Any]] = {
    "topk": (2, -1), "sort": (1, -1), "argsort": (1, -1), "norm": (2, None), "normalize": (2, 1),
    "chunk": (2, 0), "split": (2, 0), "tensor_split": (2, 0), "unbind": (1, 0), "stack": (1, 0),
    "cat": (1, 0), "concat": (1, 0), "glu": (1, -1), "cosine_similarity": (2, 1), "flip": (1, None),
    "vector_norm": (2, None), "gumbel_softmax": (3, -1), "split_with_sizes": (2, 0), "roll": (2, None),
}
# fmt: on


def apart(name: str, func: Any, args: Any, kwargs: Any, rows: set[int]) -> bool:
    """Whether a call computes rows apart; `rows`: identities of the tensors whose rows are selected."""
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") in FACTS
    if name in QUESTIONS:
        return True
    if name in ("max", "min") and not _names_dimension(args, kwargs):
        return len(args) == 2 and _broadcast(args, kwargs, rows)
    if name in ELEMENTWISE and not (name in ALONG and _names_dimension(args, kwargs)):
        return _broadcast(args, kwargs, rows)
    if name in ("matmul", "__matmul__", "mm"):
        return id(args[0]) in rows and id(args[1]) not in rows and args[1].dim() == 2
    if name in ("bmm", "baddbmm"):
        return all(id(a) in rows for a in args if isinstance(a, Tensor))
    if name in WITHIN:
        return id(args[0]) in rows and not any(id(a) in rows for a in args[1:])
    if name in ALONG:
        return _along_others(name, args, kwargs, rows)
    if name in VIEWS:
        return _keeps_rows(name, args, kwargs)
    return name == "__getitem__" and id(args[0]) in rows and _index_within(args[0], args[1])


def _names_dimension(args: Any, kwargs: Any) -> bool:
    return "dim" in kwargs or (len(args) > 1 and isinstance(args[1], int | tuple | list))


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    parts = [
        p for a in (*args, *kwargs.values()) for p in (a if isinstance(a, list | tuple) else [a])
    ]
    return [p for p in parts if isinstance(p, Tensor)]


def _broadcast(args: Any, kwargs: Any, rows: set[int]) -> bool:
    """Whether tensors that are not rows are the same for all rows."""
    tensors = _tensors(args, kwargs)
    width = max(t.dim() for t in tensors if id(t) in rows)
    deep = all(t.dim() == width for t in tensors if id(t) in rows)
    others = [t for t in tensors if id(t) not in rows]
    return deep and all(t.dim() < width or t.shape[0] == 1 for t in others)


def _along_others(name: str, args: Any, kwargs: Any, rows: set[int]) -> bool:
    """Whether the dimension that a call names is not that of the rows."""
    place, default = PLACES.get(name, (1, None))
    dimension = kwargs.get("dim", args[place] if len(args) > place else default)
    tensors = _tensors(args[:1], {})
    if not tensors or dimension is None or not all(id(t) in rows for t in _tensors(args, kwargs)):
        return False
    depth = tensors[0].dim() + (name in ("unsqueeze", "stack"))
    dimensions = dimension if isinstance(dimension, list | tuple) else (dimension,)
    return all(isinstance(d, int) and d % depth != 0 for d in dimensions)


def _keeps_rows(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a view leaves the first dimension as it is."""
    x, *rest = args
    sizes = rest[0] if rest and isinstance(rest[0], list | tuple) else rest
    if x.numel() == x.shape[0] and list(sizes) in ([], [-1]) and name in FLAT:
        return True
    if kwargs or not all(isinstance(s, int) for s in sizes):
        return False
    if name == "flatten":
        return bool(sizes) and sizes[0] % x.dim() != 0
    if name in ("transpose", "swapaxes"):
        return all(s % x.dim() != 0 for s in sizes)
    if name == "permute":
        return sizes[0] % x.dim() == 0
    if name == "expand":
        return len(sizes) == x.dim()
    count = x.shape[0]
    per_row = x.numel() // max(1, count)
    rest_size = 1
    for size in sizes[1:]:
        rest_size *= size
    return sizes[0] in (-1, count) and rest_size == per_row


def _index_within(x: Tensor, index: Any) -> bool:
    """Whether an index takes whole rows: `:` or `...` first, then anything but tensors of rows."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(p, Tensor) and p.dtype == torch.bool for p in parts):
        return False
    first = parts[0]
    if first is Ellipsis:
        others = [p for p in parts if p is not None and p is not Ellipsis]
        return len(others) < x.dim()
    return isinstance(first, slice) and first == slice(None)
