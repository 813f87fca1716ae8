"""PyTorch's engine in a plan's form trains as the eager module does, on gloo ranks in float64."""

import operator
from pathlib import Path

import pytest
from torch import nn
from torch.fx import Graph

from plait.api.plans.plan_object import with_methods
from plait.cost_model.hardware import load_cluster
from plait.ir.capture import load_source, trace
from plait.ir.errors import UsageError
from plait.ir.plan.memory_action import OFFLOAD, RECOMPUTE
from plait.ir.plan.strategy import parse_strategy
from plait.planner import PlanOptions, plan
from plait.planner.question.pins import Pin, pin_all
from plait.runtime.torch_engine.apply import check_appliable, layer_actions
from plait.runtime.torch_engine.stage_values import chunk_values
from plait.runtime.torch_engine.styles import StyledPlan, parallel_styles
from plait.runtime.torch_engine.vocabulary_loss import vocabulary_head
from plait.tests.ranks import launch

FACTORY = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.head = nn.Linear(8, 32)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

def make():
    loss = lambda output, batch: output.square().mean()
    return Net(), (torch.randint(0, 32, (8, 4)),), loss
"""
WORKER = str(Path(__file__).with_name("worker.py"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch-engine") / "factory.py"
    path.write_text(FACTORY)
    return f"{path}:make"


def planned(source, *pins, cluster="local:2", engine="torch", **more):
    built = load_source(source)
    model = trace(built.model.eval(), built.batch, built.loss_fn)
    options = PlanOptions(engine=engine, pins=pins, **more)
    return with_methods(plan(model, load_cluster(cluster), options)), model


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_every_role_trains_as_one_process_does(source, tmp_path, ranks):
    half = ranks // 2
    pins = [
        (*pin_all(f"dp={ranks}"), Pin("layers.1", parse_strategy(f"dp={ranks}"), RECOMPUTE)),
        pin_all(f"zero3={ranks}"),
        (*pin_all(f"zero2={ranks}"), Pin("layers.*", parse_strategy(f"zero2={ranks}"), OFFLOAD)),
        pin_all(f"tp={ranks}"),
        pin_all(f"tp={ranks},sp"),
        pin_all(f"pp={ranks}"),
    ]
    if half > 1:
        pins += [
            pin_all(f"dp={half},zero3=2"),
            pin_all(f"zero3={half},tp=2"),
            pin_all(f"pp={half},zero2=2"),
            pin_all(f"pp={half},zero3=2"),
            pin_all(f"pp={half},tp=2"),
        ]
    paths = []
    for number, pinned in enumerate(pins):
        made, _ = planned(source, *pinned, cluster=f"local:{ranks}")
        made.save(tmp_path / f"{number}.json")
        paths.append(str(tmp_path / f"{number}.json"))
    printed = launch(ranks, [WORKER, source, *paths], timeout_seconds=120)
    differences = [float(line.split()[1]) for line in printed[0].splitlines()]
    assert len(differences) == len(pins)
    assert max(differences) < 1e-9


@pytest.mark.long
@pytest.mark.ranks
@pytest.mark.parametrize("name", ["llama", "qwen3", "opt", "phi"])
def test_stages_gather_their_weights_for_every_micro_batch(name, tmp_path):
    source, paths = f"plait.tests.zoo.decoders:{name}", []
    for schedule in ("gpipe", "1f1b", "interleaved"):
        made, _ = planned(
            source, *pin_all("pp=2,zero3=2"), cluster="local:4", schedule=schedule, micro_batches=4
        )
        made.save(tmp_path / f"{schedule}.json")
        paths.append(str(tmp_path / f"{schedule}.json"))
    printed = launch(4, [WORKER, source, *paths], timeout_seconds=120)
    differences = [float(line.split()[1]) for line in printed[0].splitlines()]
    assert len(differences) == len(paths)
    assert max(differences) < 1e-9


def test_styles_follow_the_sharding_that_was_found(source):
    made, model = planned(source, *pin_all("tp=2"))
    module = load_source(source).model
    styles = {path: type(s).__name__ for path, s in parallel_styles(module, made, model).items()}
    assert styles["layers.0.up"] == "ColwiseParallel"
    assert styles["layers.2.down"] == "RowwiseParallel"


def test_layers_are_the_modules_of_the_plan(source):
    made, _ = planned(source, Pin("*", parse_strategy("dp=2"), RECOMPUTE))
    module = load_source(source).model
    actions = dict(layer_actions(module, made))
    assert {f"layers.{i}" for i in range(3)} <= set(actions)
    assert set(map(str, actions.values())) == {"recompute"}


@pytest.mark.parametrize(
    ("pins", "what"),
    [
        (pin_all("pp=2,tp=2,sp"), "no tp=N,sp beside pp"),
        (pin_all("sp=2"), "no sp"),
        ((*pin_all("dp=2"), Pin("layers.1", parse_strategy("zero3=2"))), "one strategy"),
    ],
)
def test_what_the_engine_cannot_is_refused_by_name(source, pins, what):
    devices = pins[0].strategy.devices
    made, _ = planned(source, *pins, engine="plait", cluster=f"local:{devices}")
    with pytest.raises(UsageError, match=what):
        check_appliable(made)


WHOLE_WIDTH = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(64, 512), nn.Linear(512, 64)

    def forward(self, x):
        heads = self.up(x).view(len(x), -1, 4, 128).softmax(1)  # all heads, whatever arrives
        return x + self.down(heads.flatten(2).view(*x.shape[:2], -1))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer() for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

def make():
    return Net(), (torch.randn(4, 64, 64),), lambda output, batch: output.square().mean()
"""


@pytest.mark.long
@pytest.mark.ranks
def test_code_that_counts_on_whole_widths_is_refused_by_its_layer(tmp_path):
    (tmp_path / "factory.py").write_text(WHOLE_WIDTH)
    source = f"{tmp_path}/factory.py:make"
    made, model = planned(source, *pin_all("tp=2"))
    assert {"layers.0.up.weight", "layers.0.down.weight"} <= set(StyledPlan(made, model).shards)
    made.save(tmp_path / "plan.json")
    printed = launch(2, [WORKER, source, str(tmp_path / "plan.json")], timeout_seconds=60)
    assert "refused: layers.0 computes something else" in printed[0]


def test_values_pass_through_chunks_that_do_not_read_them():
    graph = Graph()
    batch = graph.placeholder("batch")
    first = graph.call_module("submod_0", (batch,))
    hidden, angles = (graph.call_function(operator.getitem, (first, i)) for i in range(2))
    second = graph.call_module("submod_1", (hidden,))
    graph.output((graph.call_module("submod_2", (second, angles)),))
    rows = chunk_values(graph)
    assert rows[1].arriving == (hidden.name, angles.name)
    assert set(rows[1].leaving) == {second.name, angles.name}
    assert rows[2].leaving == rows[2].results


def test_a_weight_that_no_style_splits_is_named(source):
    answer, model = planned(source, *pin_all("tp=2"))

    class Other(nn.Module):
        """The same parameters, of modules that no style knows."""

    with pytest.raises(UsageError, match=r"layers\.0\.up\.weight|is split over tp"):
        parallel_styles(Other(), answer, model)


@pytest.mark.long
@pytest.mark.ranks
def test_a_vocabulary_split_over_tensor_ranks_splits_the_loss(tmp_path):
    (tmp_path / "tied.py").write_text(TIED)
    source = f"{tmp_path}/tied.py:make"
    made, model = planned(source, *pin_all("tp=2"))
    styles = parallel_styles(load_source(source).model, made, model)
    assert vocabulary_head(made, model, styles) == "head"
    made.save(tmp_path / "plan.json")
    printed = launch(2, [WORKER, source, str(tmp_path / "plan.json")], timeout_seconds=60)
    assert float(printed[0].split()[1]) < 1e-9


TIED = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(65536, 32)
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])
        self.head = nn.Linear(32, 65536, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, labels):
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())

def make():
    return Net(), {name: torch.randint(0, 65536, (8, 16)) for name in ("tokens", "labels")}
"""
