"""Run with TRITON_INTERPRET=1: every Triton kernel against the reference, bit for bit."""

import sys
from pathlib import Path

import torch

from plait.codegen.compression.ahead import imported
from plait.codegen.compression.triton import source, work
from plait.ir.compression.kernel import PER_INSTANCE
from plait.runtime.compression.backends.codec import Launch, target_for
from plait.runtime.compression.backends.generated import Generated
from plait.runtime.compression.backends.reference import ELEMENTS, Reference
from plait.tests.codegen.compression.test_cpp import flat, messages, pipelines


def compare(kernel, elements, codec):
    """The results of the reference and of a codec."""
    size = kernel.chunks * elements
    data = flat(size) if kernel.source is None else messages(kernel, elements)
    states = {o.name: torch.randn(size).to(ELEMENTS[o.element]) for o in kernel.operands}
    found = []
    for one in (Reference(), codec):
        target = target_for(kernel, elements)
        own = {name: state.clone() for name, state in states.items()}
        launch = Launch(elements, data, target, own, torch.tensor([0.37]), 12345 | 7 << 32, 3)
        one.run(kernel, launch)
        found.append([target, *own.values()])
    return found


def main(folder):
    """Equal kernels once, on one instance that is full and one that is not."""
    torch.manual_seed(0)
    named = {k.name: (k, p.tile) for p in pipelines() for k in p.kernels}
    codec = Generated(imported(source(*pipelines()), Path(folder)))
    for kernel, tile in {work(k): (k, tile) for k, tile in named.values()}.values():
        elements = -(-(PER_INSTANCE + 1) // tile) * tile
        for expected, got in zip(*compare(kernel, elements, codec), strict=True):
            assert torch.equal(expected, got), kernel.name
    print(len(named), "kernels")


main(sys.argv[1])
