"""Kernels: connected cheap operators share one, never across a product, and move each value once."""

from plait.cost_model.operators.fusion import fuse
from plait.ir.model.model import Op, Ref


def op(target, reads, makes):
    return Op(target, tuple(Ref(v) for v in reads), {}, tuple(makes))


def test_a_chain_reads_once_and_writes_once():
    ops = [op("add", [0, 1], [2]), op("gelu", [2], [3]), op("mul", [3, 0], [4])]
    (kernel,) = fuse(ops, ["pointwise"] * 3, range(5), {4})
    assert kernel.ops == (0, 1, 2)
    assert sorted(kernel.moved_values) == [0, 1, 4]


def test_what_is_kept_is_written():
    ops = [op("add", [0, 1], [2]), op("gelu", [2], [3])]
    (kernel,) = fuse(ops, ["pointwise"] * 2, range(4), {2, 3})
    assert sorted(kernel.moved_values) == [0, 1, 2, 3]


def test_a_product_between_keeps_kernels_apart():
    """gelu -> mm -> add, and the add reads gelu too: one kernel would wait for itself."""
    ops = [op("gelu", [0], [1]), op("mm", [1, 9], [2]), op("add", [1, 2], [3])]
    kernels = fuse(ops, ["pointwise", "gemm", "pointwise"], range(10), {3})
    assert [k.ops for k in kernels] == [(0,), (2,)]
    assert sorted(kernels[0].moved_values) == [0, 1]
    assert sorted(kernels[1].moved_values) == [1, 2, 3]


def test_views_take_no_part_but_pass_memory_on():
    ops = [op("gelu", [0], [1]), op("view", [1], [2]), op("add", [2, 5], [3])]
    (kernel,) = fuse(ops, ["pointwise", "view", "pointwise"], [0, 1, 1, 3, 4, 5], {3})
    assert kernel.ops == (0, 2)
    assert sorted(kernel.moved_values) == [0, 3, 5]


def test_only_fusible_kinds_join():
    ops = [op("add", [0, 1], [2]), op("sum", [2], [3])]
    works = ["pointwise", "reduce"]
    assert len(fuse(ops, works, range(4), {3})) == 1
    (alone,) = fuse(ops, works, range(4), {3}, ("pointwise",))
    assert sorted(alone.moved_values) == [0, 1, 2]
