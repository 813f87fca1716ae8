"""One name, all faces: every stage and every program has what each part of the house needs of it."""

import pytest

from plait.codegen.compression import cpp
from plait.cost_model.communication.collective import CommGroup
from plait.cost_model.communication.compressed_collective import price
from plait.cost_model.hardware import load_cluster
from plait.ir.compression.lower import lower
from plait.ir.compression.registry import ALGORITHMS, PROGRAMS, ROW_PROGRAMS
from plait.ir.compression.stage import CompressionStage, Dequantize, Reduce, Unpack
from plait.runtime.compression.backends import reference
from plait.runtime.compression.optimizers.registry import OPTIMIZERS

OF_ROWS = {type(stage) for program in ROW_PROGRAMS.values() for stage in program.stages}
LOCAL = {s for s in CompressionStage.__subclasses__() if not s.breaks} - OF_ROWS
READ = {Unpack, Dequantize, Reduce}  # by C++ in one loop over ranks


def test_every_stage_is_run_and_printed():
    assert set(reference.DO) == LOCAL
    assert set(cpp.ELEMENTWISE_STAGES) | set(cpp.TILE_STAGES) | READ == LOCAL


def test_every_stage_is_used():
    used = {type(stage) for program in PROGRAMS.values() for stage in program.stages}
    assert used | OF_ROWS == set(CompressionStage.__subclasses__())


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_all_its_faces(name):
    program = PROGRAMS[name]
    pipeline = lower(program, 4, 2)
    text = cpp.source(pipeline)
    for kernel in pipeline.kernels:
        assert f'extern "C" void {kernel.name}(' in text
    assert price(program, 10**6, CommGroup(8, 1), load_cluster("8xh100")).seconds > 0
    owners = [a for a in ALGORITHMS.values() if program in a.programs]
    assert len(owners) == 1
    assert owners[0].optimizer in OPTIMIZERS or program.payload == "activations"
    assert owners[0].source
