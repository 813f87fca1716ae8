"""Run by torchrun on 4 ranks: the toy program under many plans against autograd on one process."""

import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from plait.ir.capture.operators.elementary import call_key
from plait.ir.errors import FileError
from plait.runtime.checkpoint import generations as checkpoint
from plait.runtime.checkpoint.safetensors import export_safetensors, load_safetensors
from plait.runtime.comm.process_group import GroupPool
from plait.runtime.comm.watchdog import PATIENT
from plait.runtime.launch.session import session
from plait.runtime.program import Program
from plait.tests.our_warnings import our_warnings_are_errors
from plait.tests.runtime import toy

# fmt: off
PLANS = (
    ({"dp": 4}, 1), ({"pp": 2, "dp": 2}, 2), ({"pp": 2, "tp": 2}, 4), ({"pp": 4}, 8),
    ({"zero1": 2, "tp": 2}, 2), ({"zero1": 4}, 2), ({"zero2": 4}, 2), ({"zero3": 4}, 2),
    ({"zero3": 2, "tp": 2}, 1), ({"pp": 2, "zero3": 2}, 4), ({"dp": 2, "zero2": 2}, 2),
    ({"zero1": 2, "zero3": 2}, 2), ({"pp": 2, "zero1": 2}, 2), ({"tp": 4}, 2),
    ({"pp": 2, "dp": 2}, 1), ({"zero1": 2, "zero2": 2}, 2),
    ({"zero3": 4}, 2, (1, 4)), ({"zero3": 4}, 1, (3, 4)), ({"dp": 2, "zero3": 2}, 2, (1, 2)),
    ({"zero3": 2, "tp": 2}, 2, (2, 3)), ({"pp": 2, "zero3": 2}, 4, (1, 3)),
    ({"zero2": 2, "zero3": 2}, 2, (1, 2)), ({"zero1": 2, "zero3": 2}, 2, (3, 5)),
)
# fmt: on
STEPS = 3
RESUMED = (3, 8, 22)  # plans by number: pp, zero3 with tp, zero1 with a part of zero3


def reference() -> tuple[list[float], dict, dict]:
    model = toy.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, gradients = [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        key = torch.tensor([call_key(5, step, 1), 0])
        loss = model(toy.batch(step)["x"], key)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
    state = model.state_dict()
    state["seen"] += STEPS * toy.ROWS
    return losses, gradients, state


def same(made: dict, expected: dict) -> None:
    assert list(made) == list(expected), (list(made), list(expected))
    for name, tensor in expected.items():
        error = (made[name] - tensor).abs().max() / tensor.abs().max().clamp(min=1e-30)
        assert error < 1e-12, (name, error)


def resume(root: Path, rank: int, state: dict) -> None:
    """Every step under another plan, through a checkpoint: the same parameters in the end."""
    args = (torch.optim.AdamW, {"lr": 1e-2})
    for step, number in enumerate(RESUMED):
        program = Program.open(root / str(number), toy.model(), *args, seed=5 if step == 0 else 0)
        if step:
            program.load(root / "checkpoint")
        assert program.steps == step
        program.step(toy.batch(step))
        program.save(root / "checkpoint")
    same(program.state_dict(), state)
    folder = root / "checkpoint"
    complete = checkpoint.generations(folder)
    assert [p.name for p in complete] == ["generation-00000002", "generation-00000003"]
    dist.barrier()
    if rank == 0:
        path = next(complete[-1].glob("__0_*"))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        (folder / "generation-00000007").mkdir()  # a save that was killed before its manifest
    dist.barrier()
    with pytest.raises(FileError, match=r"damaged .*generation-00000002"):
        program.load(folder)
    program.load(folder, generation=2)
    assert program.steps == 2
    program.step(toy.batch(2))
    same(program.state_dict(), state)
    assert program.save(folder).name == "generation-00000008"
    dist.barrier()  # rank 0 removes what is old
    assert not (folder / "generation-00000007").exists()


def files(root: Path, rank: int) -> None:
    """A checkpoint that is written beside training, one that a rank cannot write, and weights alone."""
    first, second = (
        Program.open(root / str(number), toy.model(), optimizer_args={"lr": 1e-2}, seed=5)
        for number in RESUMED[:2]
    )
    folder = root / "beside"
    first.step(toy.batch(0))
    before = first.state_dict()
    path = first.save(folder, wait=False)
    first.step(toy.batch(1))
    first.finish_saving()
    assert checkpoint.generations(folder) == [path]
    second.load(folder)
    same(second.state_dict(), before)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limit[1]))  # as a disk that is full
    with pytest.raises(FileError, match="rank 1"):
        first.save(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert checkpoint.generations(folder) == [path]
    export_safetensors(first, root / "weights.safetensors")
    load_safetensors(second, root / "weights.safetensors")
    same(second.state_dict(), first.state_dict())
    with pytest.raises(FileError, match="No such file"):
        export_safetensors(first, root / "nowhere" / "weights.safetensors")
    same(second.state_dict(), first.state_dict())  # the ranks are still in step


def main() -> None:
    root, share = Path(sys.argv[1]), int(sys.argv[2])
    losses, gradients, state = reference()
    with session() as rank:
        pool = GroupPool(rank, PATIENT)
        for number, (sizes, micro_batches, *fraction) in enumerate(PLANS):
            if number % share and number not in RESUMED:
                continue
            folder = root / str(number)
            if rank == 0:
                schedule = "gpipe" if number % 2 else "1f1b"
                toy.write(folder, toy.table(sizes, micro_batches, schedule, *fraction))
            dist.barrier()
            args = (torch.optim.AdamW, {"lr": 1e-2})
            program = Program.open(folder, toy.model(), *args, seed=5, pool=pool)
            for step in range(STEPS):
                loss = program.forward_backward(toy.batch(step))
                assert abs(loss.item() - losses[step]) < 1e-12 * abs(loss.item()), (sizes, step)
                if step == 0:
                    found = program.full_gradients()
                    same({n: found[n] for n in gradients}, gradients)
                program.optimizer_step()
            same(program.state_dict(), state)
        resume(root, rank, state)
        files(root, rank)
    print("done", rank)


if __name__ == "__main__":
    with our_warnings_are_errors():
        main()
