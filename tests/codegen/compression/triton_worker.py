"""Run with TRITON_INTERPRET=1: every Triton kernel against the reference, bit for bit."""

import sys
from pathlib import Path

import torch

from plait.codegen.compression.aot import imported
from plait.codegen.compression.triton import kernel_signature, source
from plait.ir.compression.kernel import INSTANCE_ELEMENTS
from plait.runtime.compression.backends.codec import Launch, target_for
from plait.runtime.compression.backends.reference import ELEMENTS, ReferenceCodec
from plait.runtime.compression.backends.triton import TritonCodec
from plait.tests.codegen.compression.test_cpp import flat, messages, pipelines


def compare(kernel, elements, codec):
    """The results of the reference and of a codec."""
    size = kernel.chunks * elements
    data = flat(size) if kernel.source is None else messages(kernel, elements)
    states = {o.name: torch.randn(size).to(ELEMENTS[o.element]) for o in kernel.operands}
    differences = []
    for one in (ReferenceCodec(), codec):
        target = target_for(kernel, elements)
        own = {name: state.clone() for name, state in states.items()}
        launch = Launch(elements, data, target, own, torch.tensor([0.37]), 12345 | 7 << 32, 3)
        one.run(kernel, launch)
        differences.append([target, *own.values()])
    return differences


def main(folder, share):
    """Equal kernels once, on one instance that is full and one that is not."""
    torch.manual_seed(0)
    named = {k.name: (k, p.tile) for p in pipelines(share) for k in p.kernels}
    codec = TritonCodec(imported(source(*pipelines(share)), Path(folder)))
    for kernel, tile in {kernel_signature(k): (k, tile) for k, tile in named.values()}.values():
        elements = -(-(INSTANCE_ELEMENTS + 1) // tile) * tile
        for expected, got in zip(*compare(kernel, elements, codec), strict=True):
            assert torch.equal(expected, got), kernel.name
    print(len(named), "kernels")


main(sys.argv[1], int(sys.argv[2]))
