"""The commands of `plait`: names and help. A command's module loads when its arguments are needed."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import NamedTuple, Protocol, cast


class CommandModule(Protocol):
    """The module of a command, `commands/<name>.py`; importing it loads no torch."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work and return the exit code; raises PlaitError, whose kind has its own."""
        ...


class Command(NamedTuple):
    name: str
    help: str

    def examples(self) -> list[str]:
        """Examples as they are typed."""
        return [f"plait {self.name} {x}".rstrip() for x in EXAMPLES.get(self.name, ("",))]

    def module(self) -> CommandModule:
        return cast(CommandModule, import_module(f".{self.name}", __package__))


# fmt: off
GROUPS: dict[str, tuple[Command, ...]] = {
    "plan": (
        Command("trace", "trace a model into the IR and print what it is"),
        Command("plan", "choose how to spread training over a cluster"),
        Command("place", "put every operator of a graph on a device"),
        Command("predict", "step time and peak memory of configurations given as rows"),
        Command("pack", "an address for every buffer of known lifetime, in an arena"),
    ),
    "understand": (
        Command("explain", "the numbers behind a plan"),
        Command("diff", "what another plan, or what others would do, costs more"),
        Command("view", "draw a plan, model or placement as one HTML file"),
        Command("export", "write a plan as the configuration of another engine"),
        Command("simulate", "a plan's timeline when ranks are slow or links are down"),
        Command("serve", "answer requests of scripts and agents on stdin"),
        Command("check", "validate a file of any kind without running anything"),
    ),
    "run": (
        Command("compile", "write the training program of a plan or placement"),
        Command("verify", "hold the program on gloo ranks against one process, in float64"),
        Command("kernels", "the kernels of a compression program, compiled for targets"),
        Command("run", "start a program's ranks with torchrun"),
        Command("inspect", "who waited for whom when a run failed, from the dumps of its ranks"),
    ),
    "machines": (
        Command("clusters", "the clusters that have a name, with where their numbers come from"),
        Command("cluster", "write the cluster file of this machine or Slurm job"),
        Command("calibrate", "measure this machine and write it as a cluster file"),
        Command("doctor", "what is installed here, what is missing, and what that gives"),
        Command("completion", "a script by which bash or zsh completes commands and options"),
    ),
}
# fmt: on
EXAMPLES: dict[str, tuple[str, ...]] = {  # without `plait` and the name
    "trace": (
        "examples/small_llama.py:make -o model.json",
        "hf:examples/configs/gpt2.json --batch 8 --seq 1024",
    ),
    "plan": (
        "examples/small_llama.py:make --cluster 8xh100 -o plan.json",
        "hf:examples/configs/llama3-8b.json --batch 64 --seq 8192 --cluster 8x8xh100 --precision bf16",
        "model.json --cluster 8xa100-80 --memory 40GiB --pin '*:dp=2,tp=4'",
    ),
    "place": ("examples/two_tower.py:make --cluster 4xh100 -o placement.json",),
    "predict": ("runs.csv -o predicted.csv",),
    "pack": ("buffers.csv --capacity 1048576 -o offsets.csv", "plan.json -o offsets.csv"),
    "explain": ("plan.json --memory", "plan.json model.layers.3", "plan.json --why-not dp=4,tp=2"),
    "diff": ("a.json b.json", "plan.json --against ddp,fsdp,megatron:tp=2,pp=1"),
    "view": ("plan.json", "a.json b.json -o both.html", "plan.json --format chrome-trace"),
    "export": ("plan.json --to torchtitan -o job.toml",),
    "simulate": ("plan.json --slow rank3=1.5",),
    "serve": ("--mcp",),
    "check": ("plan.json",),
    "compile": ("plan.json examples/small_llama.py:make -o program",),
    "verify": ("plan.json examples/small_llama.py:make",),
    "kernels": ("sdp4bit --target cpu",),
    "run": ("program -- --steps 3",),
    "inspect": ("dumps",),
    "clusters": ("", "8xh100"),
    "cluster": ("init -o machine.toml",),
    "calibrate": ("--quick -o machine.toml",),
    "completion": ("bash > ~/.local/share/bash-completion/completions/plait",),
}
COMMANDS = tuple(command for group in GROUPS.values() for command in group)


def overview() -> str:
    """All commands, one a line, by group."""
    return "\n".join(
        f"{title}:\n" + "\n".join(f"  {command.name:10} {command.help}" for command in group)
        for title, group in GROUPS.items()
    )
