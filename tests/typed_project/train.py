"""A user's script, checked under pyright strict: the public names say what they take and give."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

import plait


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).square().mean()


def cluster_of(file: str | None) -> plait.Cluster:
    return plait.Cluster.load(file) if file else plait.Cluster.preset("8xh100")


def decide(model: plait.Model, cluster: plait.Cluster) -> plait.Plan:
    plan = plait.plan(model, cluster=cluster, precision="bf16", pin="dp=8")
    seconds: float = plan.step_seconds
    peak: int = plan.peak_bytes
    fits: bool = plan.fits
    strategy: str = plan.strategy
    print(f"{strategy}: {seconds} s, {peak} bytes, fits: {fits}, {plan.why_not('zero3=8', model)}")
    for alternative in plan.alternatives:
        print(alternative.name, alternative.step_seconds, alternative.fits)
    return plan


def compare(one: plait.Plan, other: plait.Plan) -> str:
    return plait.diff(one, other)


def train(batches: Iterable[dict[str, Tensor]], folder: str) -> float:
    batch = {"x": torch.zeros(16, 8)}
    program: plait.Program = plait.parallelize(
        Net(), batch, optimizer=torch.optim.AdamW, optimizer_args={"lr": 1e-3}
    )
    loss = 0.0
    for each in batches:
        loss = float(program.step(each))
    program.save(folder)
    return loss


def main() -> None:
    model = plait.trace(Net(), {"x": torch.zeros(16, 8)})
    try:
        plan = decide(model, cluster_of(None))
    except plait.InfeasibleError as error:
        raise SystemExit(str(error)) from error
    print(compare(plan, plan), plait.simulate(plan).step_seconds)
    plait.compile(plan, model, "program")


if __name__ == "__main__":
    main()
