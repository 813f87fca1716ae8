"""One of two ranks that trains a small language model in half precision, beside eager PyTorch."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import plait
from plait.runtime.launch.session import begin

WIDTH, VOCABULARY, LAYERS = 16, 23, 2
LAYOUTS = {
    "dp=2": 1,
    "dp=2 in two": 2,
    "zero1=2": 1,
    "zero2=2": 2,
    "zero3=2": 1,
    "tp=2": 1,
    "pp=2": 2,
}


class Norm(nn.Module):
    """A root-mean-square norm in float32, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x, turn):
        return x + self.down(F.silu(self.up(self.norm(x) * turn)))


class Language(nn.Module):
    """Embeddings that the head shares, rotary angles and a loss in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("rates", 1e4 ** -(torch.arange(WIDTH) / WIDTH), persistent=False)

    def forward(self, ids, places, labels):
        x = self.embedding(ids)
        turn = (places[..., None].float() * self.rates.float()).cos().to(x.dtype)
        for layer in self.layers:
            x = layer(x, turn)
        return F.cross_entropy(self.head(x).float().flatten(0, 1), labels.flatten())


def make():
    torch.manual_seed(0)
    model = Language()
    with torch.no_grad():
        model.embedding.weight.mul_(0.3)
    ids = torch.randint(0, VOCABULARY, (8, 12))
    places = torch.randint(0, 4000, (8, 12))
    return model, {"ids": ids, "places": places, "labels": ids.roll(-1, 1)}


def eager(optimizer, steps, dtype=None):
    """Losses and parameters of one process, under autocast where a type is given."""
    model, batch = make()
    stepper = optimizer(model.parameters())
    losses = []
    for _ in range(steps):
        stepper.zero_grad()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = model(**batch)
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    return losses, {n: t.detach().clone() for n, t in model.named_parameters()}


def program_of(layout, precision, optimizer, **options):
    strategy, micro_batches = layout.split()[0], LAYOUTS[layout]
    model, batch = make()
    if precision == "own bf16":
        model, precision = model.bfloat16(), None
    plan = plait.plan(
        model,
        batch,
        cluster="local:2",
        pin=f"*:{strategy}",
        micro_batches=micro_batches,
        precision=precision,
        **options,
    )
    return plan, plait.parallelize(model, batch, plan=plan, optimizer=optimizer), batch


def adamw(rate):
    def build(parameters):
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)

    return build


def moved(layout):
    """Elements that ten small steps of one process move, and a program in bf16 does not."""
    _, expected = eager(adamw(1e-5), 10)
    start = dict(make()[0].named_parameters())
    _, program, batch = program_of(layout, "bf16", adamw(1e-5))
    for _ in range(10):
        program.step(batch)
    state = program.state_dict()
    still = {
        name: int(((tensor != start[name]) & (state[name] == start[name])).sum())
        for name, tensor in expected.items()
    }
    types = {str(t.dtype) for n, t in state.items()}
    return {"still": {n: c for n, c in still.items() if c}, "types": sorted(types)}


def losses(layout, precision, **options):
    _, program, batch = program_of(layout, precision, adamw(1e-2), **options)
    result = [float(program.step(batch)) for _ in range(20)]
    scale = None if program.loss_scale is None else program.loss_scale.value
    return {"losses": result, "scale": scale, "steps": program.steps}


def overflow(layout, folder):
    """Steps from a loss scale that overflows float16, and a checkpoint of the scale."""
    _, program, batch = program_of(layout, "fp16", adamw(1e-2))
    program.loss_scale.value, before = 2.0**36, program.state_dict()
    program.forward_backward(batch)
    skipped = not program.optimizer_step()
    after = program.state_dict()
    unchanged = all(torch.equal(before[n], t) for n, t in after.items())
    while program.loss_scale.steps < 2:
        program.step(batch)
    scale = program.loss_scale.value
    program.save(folder)
    expected = [float(program.step(batch)) for _ in range(2)]
    _, other, batch = program_of("dp=2", "fp16", adamw(1e-2))
    other.load_checkpoint(folder)
    loaded = other.loss_scale.value, other.loss_scale.steps
    return {
        "skipped": skipped and unchanged,
        "scale": scale,
        "loaded": loaded,
        "differences": [abs(float(other.step(batch)) - loss) for loss in expected],
    }


def weights_and_states(layout, precision, **options):
    """Bytes of what stays on this rank, as the plan says and as the program has them."""
    plan, program, batch = program_of(layout, precision, adamw(1e-2), **options)
    program.forward_backward(batch)
    store, optimizer = program.store, program.optimizer
    gradients = sum(p.leaf.grad.nbytes for p in store.trainable())
    program.optimizer_step()
    masters = sum(p.leaf.nbytes for p in store.trainable() if p.has_master)
    states = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
    terms = dict(plan.stages[program.groups.stage].memory_terms)
    return {
        "promised": [terms["parameters"], terms["optimizer"]],
        "actual": [
            sum(p.flat.nbytes for p in store.trainable()),
            masters + sum(t.nbytes for t in states),
        ],
        "gradients": gradients,
        "stepped": sum(p.leaf.nbytes for p in store.trainable()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, _ = begin()
    results = []
    for name, arguments, options in json.loads(Path(sys.argv[1]).read_text()):
        results.append(globals()[name](*arguments, **options))
    Path(sys.argv[1]).with_suffix(f".{rank}.json").write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)
