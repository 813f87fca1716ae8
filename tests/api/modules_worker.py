"""Run on 2 ranks: modules as users have them, against the eager module: pretrained weights in files, on
the meta device, frozen, adapted, wrapped, checkpointed, of Hugging Face."""

import json
import sys
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

import plait
from plait.runtime.launch.session import begin
from plait.tests.api.variants_worker import Net, build, data

LEARNING = {"lr": 1e-2}
STEPS = 2


class LoRA(nn.Module):
    """A frozen product and a trained one of low rank beside it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + 2.0 * self.b(self.a(x))


class Checkpointed(Net):
    def forward(self, x, y=None):
        hidden = self.scale(x)
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=True)
        return nn.functional.cross_entropy(self.head(hidden), y)


def adapted() -> nn.Module:
    net = build(rate=0.0).requires_grad_(False)
    for layer in net.layers:
        layer.up, layer.down = LoRA(layer.up), LoRA(layer.down)
    return net.double()


def frozen() -> nn.Module:
    net = build(rate=0.0)
    net.layers[0].requires_grad_(False)
    return net


def checkpointed() -> nn.Module:
    torch.manual_seed(0)
    net = Checkpointed().double()
    for layer in net.layers:
        layer.drop.p = 0.0
    return net


def compiled() -> nn.Module:
    return torch.compile(build(rate=0.0))


def replicated() -> nn.Module:
    return nn.parallel.DistributedDataParallel(build(rate=0.0))


def inner(module: nn.Module) -> nn.Module:
    return getattr(module, "_orig_mod", getattr(module, "module", module))


def train(module: nn.Module) -> tuple[list[float], dict[str, torch.Tensor]]:
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, **LEARNING), []
    for step in range(STEPS):
        optimizer.zero_grad()
        output = module(**data(step))
        loss = output["loss"] if isinstance(output, dict) else output
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, module.state_dict()


def agrees(program: plait.Program, expected: tuple[list[float], dict[str, torch.Tensor]]) -> None:
    losses = [program.step(data(step)).item() for step in range(STEPS)]
    assert losses == pytest.approx(expected[0], rel=1e-12)
    state = program.state_dict()
    for name, tensor in expected[1].items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-9, atol=1e-12)


def weights(folder: Path, rank: int) -> None:
    """A module on the meta device takes its values from two files, shard by shard."""
    source = build(rate=0.0)
    tensors = {k: v.clone() for k, v in source.state_dict().items()}
    names = sorted(tensors)
    files = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    if rank == 0:
        for file, part in files.items():
            save_file({name: tensors[name] for name in part}, folder / file)
        places = {name: file for file, part in files.items() for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        torch.save(tensors, folder / "all.pt")
        torch.save(dict(list(tensors.items())[1:]), folder / "fewer.pt")
    torch.distributed.barrier()
    expected = train(source)
    for pin, where in (("zero3=2", folder), ("tp=2", folder / "all.pt"), ("pp=2", tensors)):
        with torch.device("meta"):
            module = Net().double()
        for layer in module.layers:
            layer.drop.p = 0.0
        given = {"optimizer_args": LEARNING, "pin": f"*:{pin}", "weights": where}
        program = plait.parallelize(module, data(0), **given)
        agrees(program, expected)
        assert all(p.is_meta for p in module.parameters())
    with pytest.raises(plait.MismatchError, match="the weights have no"):
        plait.parallelize(build(rate=0.0), data(0), weights=folder / "fewer.pt", pin="*:dp=2")
    (folder / f"broken{rank}.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(plait.FileError, match="header"):
        plait.parallelize(
            build(rate=0.0), data(0), weights=folder / f"broken{rank}.safetensors", pin="*:dp=2"
        )


def hugging_face() -> None:
    """A Llama that checkpoints its layers; its outputs are of its own class, without the cache."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=64,
    )
    torch.manual_seed(0)
    module = LlamaForCausalLM(config).double()
    module.gradient_checkpointing_enable()
    ids = torch.randint(0, 64, (4, 8), generator=torch.Generator().manual_seed(1))
    program = plait.parallelize(module, {"input_ids": ids, "labels": ids}, pin="*:tp=2")
    loss = program.step({"input_ids": ids, "labels": ids})
    torch.testing.assert_close(loss, module(input_ids=ids, labels=ids).loss.detach().double())
    program.load_into(module)
    longer = torch.cat((ids, ids), 1)
    with torch.no_grad():
        expected = module.eval()(input_ids=longer)
    outputs = program({"input_ids": longer})
    assert type(outputs) is type(expected)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-9, atol=1e-12)


def main() -> None:
    rank, _ = begin()
    pins = cycle(("dp=2", "zero3=2"))
    for make in (adapted, frozen, checkpointed, compiled, replicated):
        expected = train(inner(make()))
        agrees(
            plait.parallelize(make(), data(0), optimizer_args=LEARNING, pin=f"*:{next(pins)}"),
            expected,
        )
    weights(Path(sys.argv[1]), rank)
    program = plait.parallelize(build(rate=0.0), data(0), pin="*:dp=2")
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(plait.UsageError, match="autocast is on"),
    ):
        program.step(data(0))
    hugging_face()
    print("done", rank)


if __name__ == "__main__":
    main()
