"""Speed of a schedule over another one, in real programs on gloo ranks.

    python benchmarks/zero_bubble.py                    ZBV over interleaved in 2 chunks, 4 stages
    python benchmarks/zero_bubble.py --schedule v-half --micro-batches 16
    python benchmarks/zero_bubble.py --schedule bidirectional --over 1f1b

Layers are products whose forward, gradient of inputs and gradient of weights each wait equally long, as
kernels of a device would while the host is free; so four stages run at once on a machine of any size,
and what is measured is the schedule. Losses are compared with one process in float64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from plait.codegen import compile_program, write_program
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import trace
from plait.ir.model.loops import Loops, Site, declare, loops
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import pin_all
from plait.runtime.launch.launch import launch
from plait.runtime.launch.session import session

WIDTH, STEPS, RATE = 8, 6, 0.1
WAIT_SECONDS = 0.02  # of one part of one layer


@torch.library.custom_op("plait::waiting_product", mutates_args=())
def waiting_product(x: Tensor, weight: Tensor) -> Tensor:
    """A product that takes its time."""
    time.sleep(WAIT_SECONDS)
    return x @ weight


@waiting_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


def _gradients(context, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = context.saved_tensors
    return (
        torch.ops.plait.waiting_product(gradient, weight.t()),
        torch.ops.plait.waiting_product(x.t(), gradient),
    )


waiting_product.register_autograd(
    _gradients, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


@declare("plait.waiting_product.default")
def _loops(site: Site) -> Loops:
    return loops("[m k], [k n] -> [m n]", site, linear=((0,), (1,)), work="gemm", flops=2)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(WIDTH) + 0.1 * torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.plait.waiting_product(x, self.weight)


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def source(layers: int, micro_batches: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = Layers(layers).double()
    return module, torch.randn(2 * micro_batches, WIDTH, dtype=torch.float64)


def main() -> None:
    options = parsed()
    if options.worker:
        worker(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        for schedule in (options.over, options.schedule):
            place = Path(folder, schedule)
            compiled(schedule, options, place)
            arguments = [__file__, *sys.argv[1:], "--worker", str(place)]
            rows = [
                json.loads(text) for text in launch(options.stages, arguments, timeout_seconds=600)
            ]
            seconds[schedule] = statistics.median(max(step) for step in zip(*rows, strict=True))
            print(f"{schedule:<12}{seconds[schedule]:>8.3f} s per step", flush=True)
    print(
        f"{options.schedule} is {seconds[options.over] / seconds[options.schedule]:.3f} × as fast"
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--schedule", default="zbv")
    add("--over", default="interleaved", help="the schedule to compare with")
    add("--stages", type=int, default=4)
    add("--micro-batches", type=int, default=8)
    add("--worker", metavar="FOLDER", default="")
    return parser.parse_args()


def compiled(schedule: str, options: argparse.Namespace, place: Path) -> None:
    """Write the program of a schedule, of two layers a stage."""
    count = 2 * options.stages
    module, batch = source(count, options.micro_batches)
    model = trace(module, batch)
    choices = PlanOptions(
        optimizer="sgd",
        pins=pin_all(f"pp={options.stages}"),
        micro_batches=options.micro_batches,
        memory_actions=("keep",),
        schedule=schedule,
    )
    answer = plan(model, load_cluster(f"local:{options.stages}"), choices)
    assert answer.schedule == schedule, answer.schedule
    write_program(compile_program(answer, model), place)


def worker(options: argparse.Namespace) -> None:
    """One rank: seconds of every step but the first, after its losses are those of one process."""
    import plait

    with session():
        module, batch = source(2 * options.stages, options.micro_batches)
        losses = expected(options)
        program = plait.open_program(
            Path(options.worker), module, optimizer=torch.optim.SGD, optimizer_args={"lr": RATE}
        )
        seconds = []
        for loss in losses:
            start = time.perf_counter()
            actual = float(program.step(batch))
            seconds.append(time.perf_counter() - start)
            assert abs(actual - loss) <= 1e-9 * abs(loss), (actual, loss)
        print(json.dumps(seconds[1:]))


def expected(options: argparse.Namespace) -> list[float]:
    """The losses of one process, in plain products."""
    module, batch = source(2 * options.stages, options.micro_batches)
    weights = list(module.parameters())
    optimizer, losses = torch.optim.SGD(weights, lr=RATE), []
    for _ in range(STEPS):
        x = batch
        for weight in weights:
            x = x @ weight
        loss = x.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    main()
