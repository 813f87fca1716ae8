"""Formulas say in symbols what the cost model counts in numbers."""

import subprocess
import sys

import pytest
import torch

from plait.cost_model.operators.operator_cost import count_flops
from plait.ir.analysis.formula import bytes_formula, flops_formula, sizes
from plait.ir.model.loops import Site, declaration, site_of
from plait.ir.model.model import Op, Ref
from plait.ir.model.tensor import TensorType
from plait.tests.ir.ops.samples import SAMPLES
from plait.tests.ir.ops.shards import case


def test_a_matrix_product_in_symbols():
    types = [TensorType(shape, "float32") for shape in ((4, 6), (6, 8), (4, 8))]
    site = site_of(Op("aten.mm.default", (Ref(0), Ref(1)), {}, (2,)), types)
    declared = declaration(site)
    assert str(flops_formula(declared)) == "2*k*m*n"
    assert str(bytes_formula(declared, site)) == "4*k*m + 4*k*n + 4*m*n"


@pytest.mark.parametrize("sample", SAMPLES[::5], ids=str)
def test_symbols_and_numbers_agree(sample):
    drawn = case(sample)
    declared, tensors = drawn.declared, [*drawn.tensors, *drawn.results]
    types = [None if t is None else TensorType(tuple(t.shape), name(t)) for t in tensors]
    count = len(drawn.tensors)
    site = Site(drawn.op, tuple(types[:count]), tuple(types[count:]))
    flops = flops_formula(declared).subs(sizes(declared))
    assert float(flops) == pytest.approx(count_flops(declared), rel=1e-6)
    assert bytes_formula(declared, site).subs(sizes(declared)) == sum(
        t.bytes for t in (*site.operands, *site.results) if t is not None
    )


def name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def test_sympy_is_loaded_only_when_a_formula_is_asked_for():
    code = "import sys, plait.ir.analysis.formula; sys.exit('sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
