"""Messages on names that are not known, with the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What other frameworks and papers call ours, without case, `-`, `_` and blanks. Only what is known
# where the name stands is ever suggested.
MEANINGS: dict[str, tuple[str, ...]] = {
    "fsdp": ("zero3", "torch"),
    "fsdp2": ("zero3", "torch"),
    "fullyshard": ("zero3", "torch"),
    "zero": ("zero3", "deepspeed"),
    "sharded": ("zero3",),
    "hybridshard": ("hsdp",),
    "ddp": ("dp", "torch"),
    "data": ("dp",),
    "dataparallel": ("dp",),
    "replicate": ("dp",),
    "mp": ("tp",),
    "model": ("tp",),
    "tensor": ("tp",),
    "tensorparallel": ("tp",),
    "pipe": ("pp",),
    "pipeline": ("pp",),
    "pipelineparallel": ("pp",),
    "expert": ("ep",),
    "experts": ("ep",),
    "moe": ("ep",),
    "context": ("cp",),
    "ring": ("cp",),
    "ringattention": ("cp",),
    "sequence": ("sp",),
    "sequenceparallel": ("sp",),
    "ulysses": ("sp",),
    "checkpoint": ("recompute",),
    "checkpointing": ("recompute",),
    "activationcheckpointing": ("recompute",),
    "ac": ("recompute",),
    "remat": ("recompute",),
    "cpuoffload": ("offload",),
    "swap": ("offload",),
    "none": ("keep", "1f1b"),
    "save": ("keep",),
    "vpp": ("interleaved",),
    "virtual": ("interleaved",),
    "pipedream": ("1f1b",),
    "bfloat16": ("bf16",),
    "brain": ("bf16",),
    "half": ("fp16",),
    "float16": ("fp16",),
    "float": ("fp32",),
    "float32": ("fp32",),
    "single": ("fp32",),
    "float64": ("fp64",),
    "double": ("fp64",),
    "mcore": ("megatron",),
    "megatronlm": ("megatron",),
    "titan": ("torchtitan",),
    "pytorch": ("torch",),
    "sgdm": ("momentum",),
    "onebitadam": ("1-bit-adam",),
    "onebitlamb": ("1-bit-lamb",),
    "zerooneadam": ("0/1-adam",),
    "int8": ("int8-activations", "eight-bits"),
    "fp8": ("fp8-activations",),
    "bits": ("eight-bits",),
    "zerobubble": ("zb-h1",),
    "zb": ("zb-h1",),
    "cost": ("dollars",),
    "price": ("dollars",),
    "speed": ("time",),
    "perfetto": ("chrome-trace",),
    # options
    "dtype": ("precision",),
    "bs": ("batch",),
    "gpus": ("cluster", "devices", "ranks"),
    "ngpus": ("cluster", "devices", "ranks"),
    "worldsize": ("cluster", "devices", "ranks"),
    "nproc": ("ranks",),
    "seqlen": ("seq",),
    "sequencelength": ("seq",),
    "recompute": ("memory-actions",),
    "strategy": ("pin",),
    "timeout": ("time-limit",),
    "fast": ("quick",),
    # commands
    "show": ("view",),
    "draw": ("view",),
    "apply": ("compile",),
    "build": ("compile",),
    "generate": ("compile",),
    "train": ("run",),
    "launch": ("run",),
    "search": ("plan",),
    "optimize": ("plan",),
    "optimise": ("plan",),
    "compare": ("diff",),
    "why": ("explain",),
    "validate": ("check",),
    "test": ("verify",),
    "benchmark": ("calibrate",),
    "profile": ("calibrate",),
    "presets": ("clusters",),
    "devices": ("clusters", "cluster"),
    "debug": ("inspect",),
    "env": ("doctor",),
}
NEAR = 0.6  # similarity from which a name counts as a slip of another


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> str:
    """The message for a name that is not among the known ones: `unknown role 'fsdp': did you mean
    zero3? known: pp, dp, …`."""
    known = list(known)
    near, parts = nearest(name, known), name.split()
    if len(parts) > 1 and set(parts) <= set(known):
        near = ",".join(parts)
    hint = f" did you mean {near}?" if near else ""
    return f"{where}{': ' if where else ''}unknown {kind} {name!r:.80};{hint} known: {', '.join(known)}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant, or None."""
    by_form = {_form(k): k for k in known}
    form = _form(name)
    if form in by_form:
        return by_form[form]
    meant = next((by_form[_form(m)] for m in MEANINGS.get(form, ()) if _form(m) in by_form), None)
    slips = difflib.get_close_matches(form, by_form, 1, NEAR)
    return meant or (by_form[slips[0]] if slips else None)


def _form(name: str) -> str:
    """A name without case and separators."""
    return "".join(c for c in name.lower() if c not in "-_ ")
