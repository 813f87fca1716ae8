"""Packed sequences of unequal lengths: all steps of all samples, with the mask of those that there are.

`PackedSequence.data` are rows that the mask [steps, samples] selects (`selected`), whatever their order;
recurrent layers run over all steps and are told the lengths (`operators/recurrence`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

from ...errors import TraceError
from ..locate import current_user_line
from ..operators.checked import OPS
from ..torch_private import below_functions, outside_modes
from ..values.selected import Selection, Selections

Replacement = Callable[..., Any]
LONGEST = (
    "the longest sequence must have {steps} steps here, as many as its tensor; give total_length"
)


class Sequences:
    """What packs, pads and reads sequences of unequal lengths while a model is recorded."""

    def __init__(self, selections: Selections) -> None:
        self.selections = selections

    def replacements(self) -> dict[Callable[..., Any], Replacement]:
        """By function of torch, what is called in its place."""
        return {
            rnn.pack_padded_sequence: self.pack,
            rnn.pad_packed_sequence: self.pad,
            **dict.fromkeys((nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward), self.run),
        }

    def pack(
        self,
        _: Any,
        input: Tensor,
        lengths: Any,
        batch_first: bool = False,
        enforce_sorted: bool = True,
    ) -> rnn.PackedSequence:
        lengths = torch.as_tensor(lengths, dtype=torch.int64)
        x = input.transpose(0, 1) if batch_first else input
        mask = torch.arange(x.shape[0])[:, None] < lengths
        counts = mask.sum(1)
        with below_functions():
            return rnn.PackedSequence(self.selections.select(x, mask), counts)

    def pad(
        self,
        original: Replacement,
        sequence: rnn.PackedSequence,
        batch_first: bool = False,
        padding_value: float = 0.0,
        total_length: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Raises TraceError where the padded length is known to be another one than that of the rows."""
        mask = self.mask(sequence)
        steps = mask.shape[0]
        longer = 0 if total_length is None else total_length - steps
        lengths = mask.sum(0)
        if total_length is None:
            self.check_longest(mask)
            message = f"{current_user_line()}: {LONGEST.format(steps=steps)}"
            lengths = OPS.checked(lengths, (lengths.max() == steps).expand(len(lengths)), message)
        there = torch.arange(steps)[:, None] < lengths
        with below_functions():
            rows = sequence.data.reshape(*mask.shape, *sequence.data.shape[1:])
            there = there.reshape(*mask.shape, *(1,) * (rows.dim() - 2))
            padded = rows.masked_fill(~there, padding_value)[: steps + min(longer, 0)]
            if longer > 0:
                width = (0, 0) * (padded.dim() - 1) + (0, longer)
                padded = functional.pad(padded, width, value=padding_value)
        return (padded.transpose(0, 1) if batch_first else padded), lengths

    def check_longest(self, mask: Tensor) -> None:
        """Raise TraceError where the batch that was given has no sequence of as many steps as rows."""
        value = self.selections.known.assumed(mask)
        if value is None:
            return
        with outside_modes():
            whole = bool(value[-1].any())
        if not whole:
            raise TraceError(f"{current_user_line()}: {LONGEST.format(steps=mask.shape[0])}")

    def run(self, original: Replacement, module: Any, input: Any, hx: Any = None) -> Any:
        """A recurrent network on a packed sequence; on anything else as torch has it."""
        if not isinstance(input, rnn.PackedSequence):
            return original(module, input, hx)
        mask = self.mask(input)
        if module.proj_size:
            raise TraceError(
                f"{current_user_line()}: projected outputs of a packed sequence are not supported: "
                "leave proj_size at 0, and project behind the network"
            )
        lengths = mask.sum(0)
        with below_functions():
            rows = input.data.reshape(*mask.shape, input.data.shape[-1])
            out, states = _network(module, rows, lengths, hx)
            data = self.selections.marked(out.flatten(0, 1).clone(), Selection(mask, (0, 1)))
        return rnn.PackedSequence(data, input.batch_sizes), states

    def mask(self, sequence: rnn.PackedSequence) -> Tensor:
        """Which steps of which samples there are. Raises TraceError where others than `pack` packed."""
        mask = self.selections.mask(sequence.data)
        if mask is None:
            raise TraceError(
                f"{current_user_line()}: only what pack_padded_sequence gives is known as a packed "
                "sequence, with what is computed of each of its rows"
            )
        return mask


def _network(module: Any, x: Tensor, lengths: Tensor, hx: Any) -> tuple[Tensor, Any]:
    """Outputs [t n directions*h] and last states of a network of several layers on x [t n i]."""
    kind, directions = module.mode.lower(), 2 if module.bidirectional else 1
    shape = (module.num_layers * directions, x.shape[1], module.hidden_size)
    first = (x.new_zeros(shape),) * 2 if hx is None else hx if kind == "lstm" else (hx, hx)
    last: list[tuple[Tensor, Tensor]] = []
    for layer in range(module.num_layers):
        if layer and module.dropout and module.training:
            x = functional.dropout(x, module.dropout, True)
        outputs = list[Tensor]()
        for direction in range(directions):
            number = layer * directions + direction
            weights = [*module.all_weights[number], *(None,) * 4][:4]
            states = first[0][number], first[1][number]
            out, *finals = OPS.recurrence(x, *states, *weights, lengths, kind, direction == 1)
            outputs.append(out)
            last.append((finals[0], finals[1]))
        x = torch.cat(outputs, -1)
    h, c = (torch.stack(states) for states in zip(*last, strict=True))
    return x, ((h, c) if kind == "lstm" else h)
