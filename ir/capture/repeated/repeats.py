"""Record the forward of equal modules once, and copy what was recorded for the others.

A call is copied only where nothing that it can depend on differs from the recorded one: the modules
are built alike; every attribute that the recorded forward read is equal in both; no Python state that
code can reach has changed since, and the recorded forward changed none; the arguments are plain values
of the same structure, whose tensors have the same facts; modes and the calling line are the same; the
recording read nothing but these tensors, and asked for no values. All else is recorded as it runs.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch.fx.traceback
from torch import Tensor, nn

from ..locate import current_line
from ..python_state.snapshot import State
from ..torch_private import (
    below_functions,
    is_operator,
    recorded_node,
    recording_graph,
    schema,
    tensor_tables,
)
from ..values.branches import Branches
from .arguments import NotPlain, facts_of, flattened, rebuilt
from .modules import (
    Correspondence,
    Reads,
    holds_module,
    hooked,
    read_values,
    reads_of,
    repeated_modules,
    state_around,
)
from .torch_private import modes_now, record_as, repeated_value

LEAST_OPERATORS = 8  # what copying fewer saves is less than comparing costs
MOST_TEMPLATES, MOST_FAILURES = 4, 2  # by kind of module
NUMBERS = ("invocation", "one_scope")  # notes of a node that say in which invocation it runs
Node = torch.fx.Node
Call = Callable[..., Any]


class Arguments(NamedTuple):
    """A module's arguments: their structure with all that a call may depend on, and the tensors."""

    key: Any
    tensors: list[Tensor]

    def are(self, others: Arguments | None) -> bool:
        """Whether these are the same arguments."""
        if others is None or self.key != others.key:
            return False
        return all(map(operator.is_, self.tensors, others.tensors))


@dataclass
class Template:
    """A call that was recorded: `nodes` in order, of which `results` are read outside (an argument's
    number in place of a node where that is returned), and `tensors` what entered: arguments, then the
    parameters and buffers of the `modules`. `renamed`: which of them later operators read as another
    node, as one that changed nothing gave them back."""

    modules: list[nn.Module]
    arguments: Arguments
    reads: Reads
    state: State
    nodes: list[Node]
    first_invocation: int
    last_invocation: int
    structure: Any
    results: list[tuple[Node | int, Tensor]]
    entering: list[Node]
    renamed: list[tuple[int, Node]]


class Repeats:
    """Calls of modules of one recording. `invocations`: of the recording, with a `path` by module."""

    def __init__(self, model: nn.Module, branches: Branches, noted: tuple[list[Any], ...]) -> None:
        with below_functions():
            self.kinds = repeated_modules(model)
        self.paths = {id(m): path for path, m in model.named_modules()}
        self.branches = branches
        self.invocations, self.pairs = noted
        self.templates: dict[int, list[Template]] = {}
        self.failures: dict[int, int] = {}
        self.recording = False

    @contextlib.contextmanager
    def calls(self) -> Iterator[None]:
        """Calls of modules go through `call`; within the modes of the recording."""
        original = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            kind = self.kinds.get(id(module))
            frozen = bool(self.branches.frozen.lines)  # some of its parameters may be
            if (
                kind is None
                or frozen
                or self.recording
                or self.failures.get(kind, 0) >= MOST_FAILURES
            ):
                return original(module, *args, **kwargs)
            return self.call(original, kind, module, args, kwargs)

        with mock.patch.object(nn.Module, "__call__", call):
            yield

    def call(self, original: Call, kind: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        modules = list(module.modules())
        arguments = None if hooked(modules) else self.arguments(args, kwargs)
        if arguments is None:
            self.failures[kind] = self.failures.get(kind, 0) + 1
            return original(module, *args, **kwargs)
        templates = self.templates.setdefault(kind, [])
        for template in templates:
            if (entering := self.fitting(template, modules, arguments)) is not None:
                return self.copied(template, modules, entering, arguments)
        if len(templates) >= MOST_TEMPLATES:
            return original(module, *args, **kwargs)
        return self.recorded(original, kind, modules, arguments, (args, kwargs))

    def arguments(self, args: Any, kwargs: Any) -> Arguments | None:
        """What a call may depend on; None where that cannot be said."""
        tensors: list[Tensor] = []
        try:
            structure = flattened((args, kwargs), tensors)
        except NotPlain:
            return None
        custom = dict(torch.fx.traceback.current_meta.get("custom") or {})
        notes = {k: v for k, v in custom.items() if k not in (*NUMBERS, "line")}
        where = current_line(), modes_now(), repr(notes), NUMBERS[1] in custom
        with below_functions():
            return Arguments((structure, facts_of(tensors), where), tensors)

    # recording

    def recorded(
        self, original: Call, kind: int, modules: list[nn.Module], arguments: Arguments, call: Any
    ) -> Any:
        """Record a call as it runs, and keep it for others where nothing speaks against that."""
        args, kwargs = call
        state = state_around(modules)
        entering = _entering(modules, arguments)
        if state is None or entering is None:
            self.failures[kind] = self.failures.get(kind, 0) + 1
            return original(modules[0], *args, **kwargs)
        before, first = self.marks(), len(self.invocations)
        last = next(iter(reversed(recording_graph().nodes)))
        self.recording = True
        try:
            with reads_of(modules) as reads:
                result = original(modules[0], *args, **kwargs)
        finally:
            self.recording = False
        nodes = _nodes_after(last)
        span = first, len(self.invocations)
        renamed = _renamed(entering, _entering(modules, arguments), nodes)
        still = before == self.marks() and not reads.apart
        still = still and arguments.are(self.arguments(args, kwargs))
        template = None
        if still and renamed is not None and _stand_alone(nodes, entering):
            after = state_around(modules)
            values = [*read_values(modules, reads)]
            apart = after is not None and not holds_module(values, set())
            if after is not None and apart and not state.changes(after):
                parts = _results(result, arguments, nodes)
                if parts and not any(self.is_known(t) for n, t in parts[1] if isinstance(n, Node)):
                    template = Template(
                        modules, arguments, reads, after, nodes, *span, *parts, entering, renamed
                    )
        if template is None:
            self.failures[kind] = self.failures.get(kind, 0) + 1
        else:
            self.templates[kind].append(template)
        return result

    def marks(self) -> Any:
        """How much was noted so far of what a copy does not note."""
        known, selections = self.branches.known, self.branches.selections
        counts = map(len, (self.pairs, self.branches.asked, known.guards, known.changed))
        return *counts, len(selections.selections), len(self.branches.parts.splits)

    def is_known(self, tensor: Tensor) -> bool:
        """Whether anything is known of the values of a tensor."""
        known = self.branches.known
        if not tensor.dtype.is_floating_point:
            return True
        tables = known.values, known.truths, known.units, known.of_batch, known.buffers
        noted = any(id(tensor) in table for table in tables)
        return noted or id(tensor) in self.branches.selections.selections

    # copying

    def fitting(
        self, template: Template, modules: list[nn.Module], arguments: Arguments
    ) -> list[Node] | None:
        """What enters in place of the template's, where the call may be copied."""
        if template.arguments.key != arguments.key:
            return None
        pairs = zip(template.arguments.tensors, arguments.tensors, strict=True)
        if any(a is not b and (self.is_known(a) or self.is_known(b)) for a, b in pairs):
            return None
        entering = _entering(modules, arguments)
        if entering is None or not _maps(template.entering, entering):
            return None
        if not Correspondence(template.modules, modules).holds(template.reads):
            return None
        now = state_around(template.modules)
        return None if now is None or template.state.changes(now) else entering

    def copied(
        self,
        template: Template,
        modules: list[nn.Module],
        entering: list[Node],
        arguments: Arguments,
    ) -> Any:
        shift = len(self.invocations) - template.first_invocation
        self.copy_invocations(template, modules, shift)
        graph = recording_graph()
        nodes = dict(zip(template.entering, entering, strict=True))
        for node in template.nodes:
            copy = nodes[node] = graph.node_copy(node, nodes.__getitem__)
            notes = dict(node.meta.get("custom") or {})
            for name in NUMBERS:
                if notes.get(name, -1) >= template.first_invocation:
                    notes[name] += shift
            copy.meta = {**node.meta, "custom": notes}
        tensors = _tensors(modules, arguments)
        for place, node in template.renamed:
            record_as(tensors[place], nodes[node])
        results = [
            arguments.tensors[of] if isinstance(of, int) else repeated_value(nodes[of], like)
            for of, like in template.results
        ]
        return rebuilt(template.structure, iter(results))

    def copy_invocations(self, template: Template, modules: list[nn.Module], shift: int) -> None:
        """Note the invocations of a call as if it ran now."""
        custom = torch.fx.traceback.current_meta.get("custom") or {}
        paths = {
            self.paths[id(m)]: self.paths[id(o)]
            for m, o in zip(template.modules, modules, strict=True)
        }
        for run in self.invocations[template.first_invocation : template.last_invocation]:
            inside = run.parent >= template.first_invocation
            parent = run.parent + shift if inside else int(custom.get("invocation", 0))
            self.invocations.append(type(run)(paths[run.path], run.class_name, parent))


def _entering(modules: list[nn.Module], arguments: Arguments) -> list[Node] | None:
    """The nodes of arguments, and of parameters and buffers; None where one is no node."""
    nodes = [recorded_node(tensor) for tensor in _tensors(modules, arguments)]
    return None if any(node is None for node in nodes) else nodes


def _tensors(modules: list[nn.Module], arguments: Arguments) -> list[Tensor]:
    tables = [table for module in modules for table in tensor_tables(module)]
    state = [tensor for table in tables for tensor in table.values() if tensor is not None]
    return [*arguments.tensors, *state]


def _renamed(
    before: list[Node], after: list[Node] | None, nodes: list[Node]
) -> list[tuple[int, Node]] | None:
    """Which of the nodes that entered are others afterwards; None where those are none of the call's."""
    if after is None or len(before) != len(after):
        return None
    pairs = enumerate(zip(before, after, strict=True))
    renamed = [(place, now) for place, (old, now) in pairs if now is not old]
    return renamed if set(nodes).issuperset(node for _, node in renamed) else None


def _maps(nodes: list[Node], others: list[Node]) -> bool:
    """Whether equal nodes have equal partners, and different ones different partners."""
    pairs = set(zip(nodes, others, strict=True))
    return len(pairs) == len(set(nodes)) == len(set(others))


def _nodes_after(last: Node) -> list[Node]:
    nodes, node = list[Node](), last.next
    while node.op != "root":
        nodes.append(node)
        node = node.next
    return nodes


def _stand_alone(nodes: list[Node], entering: list[Node]) -> bool:
    """Whether operators, of which there are enough, read nothing but what enters, and write nothing."""
    if len(nodes) < LEAST_OPERATORS:
        return False
    known = set(entering)
    for node in nodes:
        if node.op not in ("call_function", "get_attr") or not known.issuperset(
            node.all_input_nodes
        ):
            return False
        if is_operator(node.target) and schema(node.target).is_mutable:
            return False
        known.add(node)
    return True


def _results(
    result: Any, arguments: Arguments, nodes: list[Node]
) -> tuple[Any, list[tuple[Node | int, Tensor]]] | None:
    """The structure of what a call returns and its tensors; None where they share memory."""
    tensors: list[Tensor] = []
    try:
        structure = flattened(result, tensors)
    except NotPlain:
        return None
    with below_functions():
        facts = facts_of([*arguments.tensors, *tensors])
    count, inside = len(arguments.tensors), set(nodes)
    results: list[tuple[Node | int, Tensor]] = []
    for place, tensor in enumerate(tensors, count):
        node, of = recorded_node(tensor), facts[place]
        if of.first < count:
            results.append((of.first, tensor))
        elif node in inside and of.first == of.storage == place:
            results.append((node, tensor))
        else:
            return None
    return structure, results
