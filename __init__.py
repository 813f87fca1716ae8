"""Plait: a compiler that spreads PyTorch training over many devices."""

from plait.api import __all__ as __all__
from plait.api import __dir__ as __dir__
from plait.api import __getattr__ as __getattr__

TYPE_CHECKING = False  # typing.TYPE_CHECKING costs a module; checkers know the name
if TYPE_CHECKING:
    from plait.api import Cluster as Cluster
    from plait.api import CommunicationError as CommunicationError
    from plait.api import FileError as FileError
    from plait.api import GlobalBatchSampler as GlobalBatchSampler
    from plait.api import InfeasibleError as InfeasibleError
    from plait.api import MismatchError as MismatchError
    from plait.api import Model as Model
    from plait.api import PlaitError as PlaitError
    from plait.api import Plan as Plan
    from plait.api import Program as Program
    from plait.api import TraceError as TraceError
    from plait.api import UsageError as UsageError
    from plait.api import VerifyError as VerifyError
    from plait.api import apply as apply
    from plait.api import compile as compile
    from plait.api import diff as diff
    from plait.api import explain as explain
    from plait.api import export as export
    from plait.api import export_safetensors as export_safetensors
    from plait.api import load_cluster as load_cluster
    from plait.api import load_model as load_model
    from plait.api import load_plan as load_plan
    from plait.api import load_safetensors as load_safetensors
    from plait.api import open_program as open_program
    from plait.api import parallelize as parallelize
    from plait.api import place as place
    from plait.api import plan as plan
    from plait.api import regroup as regroup
    from plait.api import simulate as simulate
    from plait.api import trace as trace
    from plait.api import verify as verify
