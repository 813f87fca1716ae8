"""The requests of a server: what each takes, as structs from which their schemas are generated."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.structs import replace

Text = Annotated[str, Meta(min_length=1, max_length=4096)]
Count = Annotated[int, Meta(ge=1, le=1 << 40)]


class PlanningJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=False):
    """A model on a cluster, under the options of `plait plan`."""

    source: Annotated[Text, Meta(description="hf:config.json, model.json or file.py:factory")]
    cluster: Annotated[Text, Meta(description="8x8xh100, 16xp5, local:4 or a TOML file")]
    batch: Annotated[Count | None, Meta(description="samples, for hf: sources")] = None
    seq: Annotated[Count | None, Meta(description="tokens per sample, for hf: sources")] = None
    global_batch: Annotated[Count | None, Meta(description="samples per step")] = None
    memory: Annotated[Text | None, Meta(description="limit per device, as in 72GiB")] = None
    precision: Text | None = None
    optimizer: Text | None = None
    engine: Annotated[Text | None, Meta(description="what runs the plan; default plait")] = None
    pins: Annotated[tuple[Text, ...], Meta(description="'*:dp=4', 'block[0-3]:tp=2'")] = ()

    def keywords(self) -> dict[str, Any]:
        """The options of planning that the job gives."""
        names = ("global_batch", "memory", "precision", "optimizer", "engine")
        given = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        return given | ({"pin": list(self.pins)} if self.pins else {})


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing or several that differ from a job."""

    global_batch: Count | None = None
    memory: Text | None = None
    cluster: Text | None = None
    seq: Annotated[Count | None, Meta(description="tokens per sample of an hf: source")] = None
    pin: Annotated[Text | None, Meta(description="one more pin: 'GLOB:STRATEGY'")] = None

    def apply(self, job: PlanningJob) -> PlanningJob:
        """The job after the change."""
        given = {n: v for n, v in msgspec.structs.asdict(self).items() if v is not None}
        pin = given.pop("pin", None)
        return replace(job, **given, pins=(*job.pins, pin) if pin else job.pins)


class PlanParams(PlanningJob, frozen=True):
    """The fastest plan that fits."""


class ExplainParams(PlanningJob, frozen=True):
    """The terms of the plan's step or memory; `where` names calls, functions or stages."""

    where: Text | None = None
    of_memory: bool = False


class WhatIfParams(PlanningJob, frozen=True):
    """What the plan becomes after a change of batch, memory, cluster, tokens or one pin."""

    change: Change = Change()


class FitsParams(PlanningJob, frozen=True):
    """Whether a strategy fits, and the smallest change that does where it does not."""

    strategy: Annotated[Text | None, Meta(description="dp=2,tp=4; default: any")] = None


class CompareParams(PlanningJob, frozen=True):
    """The plan beside what others would do with the same model and cluster."""

    against: Annotated[Text, Meta(description="ddp,fsdp,megatron:tp=8,pp=4")] = "ddp,fsdp,megatron"
