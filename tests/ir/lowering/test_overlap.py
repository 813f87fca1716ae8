"""Collectives beside operators: what is moved, what is not, and that nothing is computed otherwise."""

import random

import pytest

from plait.ir.lowering.forward_backward import partition
from plait.ir.lowering.overlap import Overlap, overlap
from plait.ir.lowering.products import slices
from plait.ir.lowering.products.slices import in_slices
from plait.ir.model.mesh import Axis, Mesh
from plait.ir.model.model import LocalLists
from plait.ir.text.function import parse_function, print_local_lists

LAYER = """\
function layer
  parameter %0 up : f32[8 64] gradient %18
  parameter %1 down : f32[64 8] gradient %11
  activation %2 x : f32[4 8] gradient %16
  %4 = aten.mm.default %2 %0 : f32[4 64]
  %5 = aten.relu.default %4 : f32[4 64]
  %6 = aten.mm.default %5 %1 : f32[4 8]
  %7 = comm.all_reduce %6 tp : f32[4 8]
  output %7 tangent %3 : f32[4 8]
  backward
  %8 = aten.t.default %1 : f32[8 64]
  %9 = aten.mm.default %3 %8 : f32[4 64]
  %10 = aten.t.default %5 : f32[64 4]
  %11 = aten.mm.default %10 %3 : f32[64 8]
  %12 = aten.threshold_backward.default %9 %5 0 : f32[4 64]
  %13 = aten.t.default %0 : f32[64 8]
  %14 = aten.mm.default %12 %13 : f32[4 8]
  %15 = comm.all_reduce %14 tp : f32[4 8]
  %16 = aten.neg.default %15 : f32[4 8]
  %17 = aten.t.default %2 : f32[8 4]
  %18 = aten.mm.default %17 %12 : f32[8 64]
"""


SLICED = """\
function layer
  parameter %0 up : f32[8 16] gradient %12
  activation %1 x : f32[4 8] gradient %11
  %3 = comm.all_gather %0 slice 1 1 : f32[8 64]
  %4 = aten.mm.default %1 %3 : f32[4 64]
  %5 = aten.relu.default %4 : f32[4 64]
  output %5 tangent %2 : f32[4 64]
  backward
  %6 = aten.threshold_backward.default %2 %5 0 : f32[4 64]
  %7 = aten.t.default %1 : f32[8 4]
  %8 = aten.mm.default %7 %6 : f32[8 64]
  %9 = comm.all_gather %0 slice 1 1 : f32[8 64]
  %10 = aten.t.default %9 : f32[64 8]
  %11 = aten.mm.default %6 %10 : f32[4 8]
  %12 = comm.reduce_scatter %8 slice 1 1 : f32[8 16]
"""


def lists_of(text=LAYER, mesh=None):
    function = parse_function(text)
    function = function if mesh is None else in_slices(function, mesh)
    return LocalLists(function, partition(function, "keep"))


def numbers(ops):
    return [r for op in ops for r in op.results if op.target != "comm.start"]


def test_what_waits_for_nothing_runs_beside_a_collective(golden):
    golden(print_local_lists(overlap(lists_of(), Overlap(2**30))), "layer")


def test_a_slice_travels_beside_the_product_that_reads_the_one_before(golden, monkeypatch):
    monkeypatch.setattr(slices, "SLICE_BYTES", 512)
    before = lists_of(SLICED, Mesh((Axis("slice", 4),)))
    after = overlap(before, Overlap(2**30, sliced=("slice",)))
    flying = 0
    for op in (*after.halves.forward, *after.halves.backward):
        flying += (op.target == "comm.start") - (op.target == "comm.wait")
        assert flying <= 1
    golden(print_local_lists(after), "slices")


def test_options_leave_collectives_where_they_are():
    before = lists_of()
    for options in (Overlap(in_flight_bytes=200), Overlap(2**30, ("tp",))):
        assert overlap(before, options).halves == before.halves


@pytest.mark.parametrize("seed", range(20))
def test_every_operator_runs_once_after_what_it_reads_and_needs_no_more_memory(seed):
    rng, lines, values = random.Random(seed), [], [0]
    for value in range(2, 40):
        one, other = rng.choice(values), rng.choice(values)
        rows = rng.choice([f"comm.all_reduce %{one} tp", f"aten.add.Tensor %{one} %{other}"])
        lines.append(f"  %{value} = {rows} : f32[4 8]")
        values.append(value)
    last = "  output %39 tangent %1 : f32[4 8]\n  backward\n"
    text = "function f\n  activation %0 x : f32[4 8]\n" + "\n".join(lines) + "\n" + last
    before = lists_of(text)
    sliced = rng.choice([(), ("tp",)])
    after = overlap(before, Overlap(rng.choice([512, 1024, 2**20]), sliced=sliced))
    ops, usual = after.halves.forward, before.halves.forward
    assert sorted(numbers(ops)) == sorted(numbers(usual))
    known = {0}
    for op in ops:
        assert known.issuperset(op.operands())
        known.update(op.results)
    of = {op.results: op.operands() for op in usual}
    starts = {op.results[0]: op.operands() for op in ops if op.target == "comm.start"}
    for op in ops:
        if op.target == "comm.wait":
            assert starts[op.operands()[0]] == of[op.results]
        elif op.target != "comm.start":
            assert op.operands() == of[op.results]
