"""Run on 4 ranks: short and long batches of one step under plans of their own, against eager."""

import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import plait
from plait.ir.lowering.redistribute import redistribution_bytes
from plait.runtime.launch.session import begin

SHORT, LONG = 8, 32
PAIRS = (  # the plans of short and of long sequences
    ("dp=4", "pp=2,tp=2"),
    ("zero3=4", "dp=2,tp=2"),
    ("pp=2,zero1=2", "zero3=2@1/2,tp=2"),
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project = nn.LayerNorm(16), nn.Linear(16, 48)
        self.out, self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 40), nn.Linear(40, 16)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (4, 4)).transpose(1, 2)
            for part in self.project(self.norm(x)).split(16, -1)
        )
        x = x + self.out(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )
        return x + self.down(F.gelu(self.up(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.seen = nn.Embedding(50, 16), nn.Buffer(torch.zeros(()))
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, labels):
        self.seen += 1
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def build() -> Net:
    torch.manual_seed(0)
    return Net().double()


def data(number: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(0, 50, (8, length + 1), generator=generator)
    return {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}


def trained(folder: Path, pair: tuple[str, str]) -> None:
    model, files = build(), []
    for strategy, length in zip(pair, (SHORT, LONG), strict=True):
        file = folder / f"{length}.json"
        options = {"pin": f"*:{strategy}", "memory_actions": ("keep",)}
        plait.plan(model, data(0, length), cluster="local:4", **options).save(file)
        files.append(file)
    adam = {"optimizer": torch.optim.AdamW, "optimizer_args": {"lr": 1e-2}}
    program = plait.parallelize(
        model, data(0, SHORT), plan=files[0], other_plans=[files[1]], **adam
    )
    eager = build()
    optimizer = torch.optim.AdamW(eager.parameters(), lr=1e-2)
    for step, lengths in enumerate([(SHORT, LONG), (LONG,), (LONG, SHORT, LONG)]):
        optimizer.zero_grad()
        for number, length in enumerate(lengths):
            batch = data(10 * step + number, length)
            expected = eager(**batch)
            expected.backward()
            assert abs(program.forward_backward(batch) - expected) < 1e-9 * expected.abs(), pair
        gradients = program.full_gradients()
        for name, parameter in eager.named_parameters():
            assert parameter.grad is not None
            error = (gradients[name] - parameter.grad).abs().max() / parameter.grad.abs().max()
            assert error < 1e-9, (pair, step, name, float(error))
        program.optimizer_step()
        optimizer.step()
    for name, tensor in program.state_dict().items():
        torch.testing.assert_close(tensor, eager.state_dict()[name], rtol=1e-7, atol=1e-9)
    returns_the_same_bits(program)
    batch = data(99, LONG // 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = program.forward_backward(batch)
    assert abs(loss - eager(**batch)) < 1e-9, pair
    said = ["none of the other plans" in str(w.message) for w in caught]
    assert any(said) == (torch.distributed.get_rank() == 0), caught


def returns_the_same_bits(program: plait.Program) -> None:
    """Between the plans and back nothing changes, and no rank receives more than it lacks."""
    before = program.state_dict()
    sent = program.groups.pool.sent_bytes
    (variant,) = (one.step for one in program.variants.known.values())
    variant.store.version = None
    count = sent["all_to_all"]
    variant.store.refresh((-1, -1))
    everyone = program.groups.everyone
    total = everyone.all_reduce(torch.tensor(float(sent["all_to_all"] - count)))
    least = sum(redistribution_bytes(program.table, variant.table).parameters)
    assert total <= least + 64, (float(total), least)
    variant.store.return_buffers(["seen"])
    for name, tensor in program.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def main(folder: Path, pairs: int) -> None:
    rank, _ = begin()
    for number, pair in enumerate(PAIRS[-pairs:]):
        own = folder / f"{number}-{rank}"
        own.mkdir()
        trained(own, pair)
    print("done", rank, flush=True)


main(Path(sys.argv[1]), int(sys.argv[2]))
