"""The public names of Plait, each loaded when it is first used."""

from ..ir.late_names import late_names

TYPE_CHECKING = False  # typing.TYPE_CHECKING costs a module; checkers know the name
if TYPE_CHECKING:
    from ..ir.errors import FileError as FileError
    from ..ir.errors import InfeasibleError as InfeasibleError
    from ..ir.errors import MismatchError as MismatchError
    from ..ir.errors import PlaitError as PlaitError
    from ..ir.errors import TraceError as TraceError
    from ..ir.errors import UsageError as UsageError
    from ..ir.errors import VerifyError as VerifyError
    from ..ir.model.model import Model as Model
    from ..runtime.checkpoint.safetensors import export_safetensors as export_safetensors
    from ..runtime.checkpoint.safetensors import load_safetensors as load_safetensors
    from ..runtime.comm.watchdog import CommunicationError as CommunicationError
    from ..runtime.execution.sampler import GlobalBatchSampler as GlobalBatchSampler
    from ..runtime.program import Program as Program
    from .elastic import open_program as open_program
    from .elastic import regroup as regroup
    from .elastic import replan as replan
    from .named_cluster import Cluster as Cluster
    from .placement import place as place
    from .plans.engine_plans import export as export
    from .plans.explanation import explain as explain
    from .plans.plan_object import Plan as Plan
    from .plans.plan_object import load_plan as load_plan
    from .python import parallelize as parallelize
    from .python import plan as plan
    from .python import trace as trace
    from .torch_engine import apply as apply
    from .workflow import compile as compile
    from .workflow import diff as diff
    from .workflow import load_cluster as load_cluster
    from .workflow import load_model as load_model
    from .workflow import simulate as simulate
    from .workflow import verify as verify

_ERRORS = (
    "FileError",
    "InfeasibleError",
    "MismatchError",
    "PlaitError",
    "TraceError",
    "UsageError",
    "VerifyError",
)
_MODULES = {
    "Cluster": "plait.api.named_cluster",
    "CommunicationError": "plait.runtime.comm.watchdog",
    "GlobalBatchSampler": "plait.runtime.execution.sampler",
    "Model": "plait.ir.model.model",
    "Plan": "plait.api.plans.plan_object",
    "Program": "plait.runtime.program",
    "apply": "plait.api.torch_engine",
    "compile": "plait.api.workflow",
    "diff": "plait.api.workflow",
    "explain": "plait.api.plans.explanation",
    "export": "plait.api.plans.engine_plans",
    "export_safetensors": "plait.runtime.checkpoint.safetensors",
    "load_cluster": "plait.api.workflow",
    "load_model": "plait.api.workflow",
    "load_plan": "plait.api.plans.plan_object",
    "load_safetensors": "plait.runtime.checkpoint.safetensors",
    "open_program": "plait.api.elastic",
    "parallelize": "plait.api.python",
    "place": "plait.api.placement",
    "plan": "plait.api.python",
    "regroup": "plait.api.elastic",
    "replan": "plait.api.elastic",
    "simulate": "plait.api.workflow",
    "trace": "plait.api.python",
    "verify": "plait.api.workflow",
    **dict.fromkeys(_ERRORS, "plait.ir.errors"),
}

# fmt: off
__all__ = [
    "Cluster", "CommunicationError", "FileError", "GlobalBatchSampler", "InfeasibleError",
    "MismatchError", "Model", "PlaitError", "Plan", "Program", "TraceError", "UsageError",
    "VerifyError", "apply", "compile", "diff", "explain", "export", "export_safetensors",
    "load_cluster", "load_model", "load_plan", "load_safetensors", "open_program", "parallelize",
    "place", "plan", "regroup", "replan", "simulate", "trace", "verify",
]
# fmt: on


__getattr__ = late_names("plait", _MODULES)


def __dir__() -> list[str]:
    return __all__
