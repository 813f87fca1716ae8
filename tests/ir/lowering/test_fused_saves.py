"""What compiled functions save."""

from plait.ir.lowering.forward_backward import partition
from plait.ir.lowering.fused_saves import saved_beside_fusion
from plait.ir.text.function import parse_function

GATE = """\
function gate
  parameter %0 up : f32[8 64] gradient %17
  parameter %1 down : f32[64 8] gradient %9
  activation %2 x : f32[4 8] gradient %19
  %4 = aten.mm.default %2 %0 : f32[4 64]
  %5 = aten.silu.default %4 : f32[4 64]
  %6 = aten.mul.Tensor %5 %4 : f32[4 64]
  %7 = aten.mm.default %6 %1 : f32[4 8]
  output %7 tangent %3 : f32[4 8]
  backward
  %8 = aten.t.default %6 : f32[64 4]
  %9 = aten.mm.default %8 %3 : f32[64 8]
  %10 = aten.t.default %1 : f32[8 64]
  %11 = aten.mm.default %3 %10 : f32[4 64]
  %12 = aten.mul.Tensor %11 %5 : f32[4 64]
  %13 = aten.mul.Tensor %11 %4 : f32[4 64]
  %14 = aten.silu_backward.default %13 %4 : f32[4 64]
  %15 = aten.add.Tensor %12 %14 : f32[4 64]
  %16 = aten.t.default %2 : f32[8 4]
  %17 = aten.mm.default %16 %15 : f32[8 64]
  %18 = aten.t.default %0 : f32[64 8]
  %19 = aten.mm.default %15 %18 : f32[4 8]
"""


def test_what_kernels_compute_as_they_read_is_not_saved():
    gate = parse_function(GATE)
    halves = partition(gate, saved_beside_fusion(gate))
    assert partition(gate, "keep").saved == (2, 4, 5, 6)
    assert halves.saved == (2, 4)  # a product is not computed again
    assert halves.backward == (*gate.forward_ops[1:3], *gate.backward_ops)
