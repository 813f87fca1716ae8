"""A hand-written program: two linear maps that share a weight, residual layers between them.

It has what generated programs have: several stages, micro-batches, tensor-parallel layers, a random
function, a tied weight, a buffer that is replaced, and values that depend on the batch alone.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from plait.ir.model.mesh import Axis, Mesh
from plait.ir.model.tensor import TensorType
from plait.ir.plan.program import (
    BatchTensor,
    CallRun,
    NumberedName,
    ParameterSpec,
    ProgramTable,
    StageValue,
)

ROWS, WIDTH, HIDDEN, INSIDE, LAYERS = 8, 6, 4, 8, 4
AXES = ("pp", "dp", "zero1", "zero2", "zero3", "tp")
BATCH_AXES = AXES[1:5]
STREAM, CHANCE = 3, 0.25


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(HIDDEN, INSIDE) * 0.5)
        self.b = nn.Parameter(torch.randn(INSIDE, HIDDEN) * 0.5)
        self.bias = nn.Parameter(torch.zeros(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(x @ self.a) @ self.b + self.bias


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH, HIDDEN))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.tied = self.w
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("hidden", torch.ones(()), persistent=False)

    def forward(self, x: Tensor, key: Tensor) -> Tensor:
        index = [ROWS, HIDDEN, 0, HIDDEN, 1, 0]
        h = torch.ops.plait.dropout.default(x @ self.w, key, CHANCE, STREAM, index)
        for layer in self.layers:
            h = layer(h)
        return ((h @ self.tied.t()) ** 2).sum() / x.shape[0]


FILES = {
    "__init__.py": "",
    "functions/__init__.py": "from . import count as count, entry as entry\n"
    "from . import layer as layer, leave as leave\n",
    "functions/count.py": f"""
import torch
RANDOM = False

def forward(comm, seen, x):
    rows = torch.ones((), dtype=x.dtype) * x.shape[0]
    for axis in {BATCH_AXES!r}:
        rows = comm.all_reduce(rows, axis)
    return 1 / rows, seen + rows
""",
    "functions/entry.py": f"""
import torch
RANDOM = True
AXES = {("micro", *BATCH_AXES)!r}

def forward(comm, w, x, key):
    h = x @ w
    places = [[h.shape[0], {HIDDEN}, AXES], [{HIDDEN}, 1, []]]
    return (comm.dropout(h, key, {CHANCE}, {STREAM}, places),), (x, key)

def backward(comm, w, saved, d_h):
    x, key = saved
    places = [[d_h.shape[0], {HIDDEN}, AXES], [{HIDDEN}, 1, []]]
    return (x.t() @ comm.dropout(d_h, key, {CHANCE}, {STREAM}, places),), (None,)
""",
    "functions/layer.py": """
import torch
RANDOM = False

def forward(comm, a, b, bias, x):
    h = torch.tanh(x @ a)
    y = x + comm.all_reduce(h @ b, "tp") + bias
    return (y,), (x, h)

def backward(comm, a, b, bias, saved, d_y):
    x, h = saved
    d_h = (d_y @ b.t()) * (1 - h * h)
    d_x = d_y + comm.all_reduce(d_h @ a.t(), "tp")
    return (x.t() @ d_h, h.t() @ d_y, d_y.sum(0)), (d_x,)
""",
    "functions/leave.py": """
import torch
RANDOM = False

def forward(comm, w, h, scale):
    out = h @ w.t()
    return ((out * out).sum() * scale,), (h, out, scale)

def backward(comm, w, saved, d_loss):
    h, out, scale = saved
    d_out = 2 * out * scale * d_loss
    return (d_out.t() @ h,), (d_out @ w, None)
""",
}
DATA = """
from . import functions
BATCH = ("x",)
MICRO_BATCH_DIMS = ((0, 1), None)

def batch_only(run, x):
    scale, _ = run.batch_only(functions.count, 0, x)
    return x, scale
"""


def stage_source(stage: int, stages: int) -> str:
    """Stage modules; layers are divided evenly, calls are numbered as in the table."""
    first, last = (2 + LAYERS * s // stages for s in (stage, stage + 1))
    lines = [DATA, "def forward(run, x, scale, h=None):"]
    if stage == 0:
        lines.append("    h, = run.forward(functions.entry, 1, x)")
    lines.append(f"    for call in range({first}, {last}):")
    lines.append("        h, = run.forward(functions.layer, call, h)")
    if stage + 1 == stages:
        lines.append(f"    h, = run.forward(functions.leave, {2 + LAYERS}, h, scale)")
    lines += ["    return (h,)", "", "def backward(run, d_h):"]
    if stage + 1 == stages:
        lines.append(f"    d_h, _ = run.backward(functions.leave, {2 + LAYERS}, d_h)")
    lines.append(f"    for call in reversed(range({first}, {last})):")
    lines.append("        d_h, = run.backward(functions.layer, call, d_h)")
    if stage == 0:
        lines += ["    run.backward(functions.entry, 1, d_h)", "    return ()"]
    else:
        lines.append("    return (d_h,)")
    return "\n".join(lines) + "\n"


def table(
    sizes: dict[str, int], micro_batches: int, schedule: str = "1f1b", fraction=(1, 1)
) -> ProgramTable:
    dtype = "float64"
    mesh = Mesh(tuple(Axis(name, sizes.get(name, 1)) for name in AXES))
    stages = mesh.axes[0].size
    whole = ("R",) * len(AXES)
    stage_of = [
        s for s in range(stages) for _ in range(LAYERS * s // stages, LAYERS * (s + 1) // stages)
    ]

    def spec(name, shape, layout, on, **rest) -> ParameterSpec:
        factors = tuple((size,) for size in shape)
        partial_axes = ("dp",) if sizes.get("dp", 1) > 1 else ()
        kind = TensorType(shape, dtype)
        return ParameterSpec(
            name,
            "parameter",
            kind,
            factors,
            layout,
            on,
            True,
            partial_axes,
            fraction=fraction,
            **rest,
        )

    tensors = [spec("w", (WIDTH, HIDDEN), whole, tuple(sorted({0, stages - 1})), aliases=("tied",))]
    for stage in range(stages):
        numbers = [i for i in range(LAYERS) if stage_of[i] == stage]
        for leaf, shape, layout in (
            ("a", (HIDDEN, INSIDE), (*whole[1:], (1, 0))),
            ("b", (INSIDE, HIDDEN), (*whole[1:], (0, 0))),
            ("bias", (HIDDEN,), whole),
        ):
            name = NumberedName("layers.", numbers[0], f".{leaf}")
            tensors.append(spec(name, shape, layout, (stage,), count=len(numbers)))
    seen = ParameterSpec(
        "seen", "buffer", TensorType((), dtype), (), whole, tuple(range(stages)), False
    )
    hidden = ParameterSpec("hidden", "buffer", TensorType((), dtype), (), whole, (0,), False)
    layer = tuple(NumberedName("layers.", 0, f".{leaf}") for leaf in ("a", "b", "bias"))
    batch_layout = ((0, 0), *((0, 0) if name in BATCH_AXES else "R" for name in AXES))
    degree = torch.Size(sizes.get(name, 1) for name in BATCH_AXES).numel() * micro_batches
    boundary = StageValue("h", TensorType((ROWS // degree, HIDDEN), dtype), True)
    return ProgramTable(
        model="toy",
        model_digest="0" * 16,
        plan_digest="0" * 16,
        mesh=mesh,
        meshes=(mesh,),
        loss_mesh=0,
        stages=stages,
        micro_batches=micro_batches,
        schedule=schedule,
        global_batch=ROWS,
        precision="fp64",
        optimizer="adamw",
        state_tensors=(*tensors, seen, hidden),
        calls=(
            CallRun(0, 1, "", ("seen",), updates=((1, "seen"),)),
            CallRun(1, 2, "", ("w",)),
            CallRun(2, 2 + LAYERS, NumberedName("layers.", 0, ""), layer),
            CallRun(2 + LAYERS, 3 + LAYERS, "", ("w",)),
        ),
        batch=(
            BatchTensor(
                "x", ("x",), TensorType((ROWS, WIDTH), dtype), ((ROWS,), (WIDTH,)), batch_layout
            ),
        ),
        stage_transfers=tuple((boundary,) for _ in range(stages - 1)),
    )


def write(folder: Path, table: ProgramTable) -> None:
    from plait.ir.files.json_files import dump
    from plait.ir.plan.program import sealed

    files = {**FILES}
    files.update({f"stage_{s}.py": stage_source(s, table.stages) for s in range(table.stages)})
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "table.json").write_bytes(dump(sealed(table), "plait/program"))


def batch(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"x": torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)}


def model() -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Toy().double()
