"""Memory actions print as they are written on the command line, and read back."""

import copy
import pickle

import pytest

from plait.ir.plan.memory_action import BASIC_ACTIONS, INPUTS, KEEP, MemoryAction
from plait.planner.activations.ladder import ALL_ACTIONS

TEXTS = (
    "keep", "save 75%", "save 33%", "recompute", "offload", "offload 50%", "offload inputs",
    "split 2", "split 128",
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_an_action_is_its_text(text):
    action = MemoryAction.parse(text)
    assert str(action) == f"{action}" == text
    assert action == MemoryAction.parse(text)
    assert len({action, MemoryAction.parse(text), copy.deepcopy(action)}) == 1
    assert pickle.loads(pickle.dumps(action)) == action


@pytest.mark.parametrize(
    "text",
    ["", "Keep", "keep ", "save 0%", "save 100%", "save ٣%", "split 1", "split 02", "offload 5"],
)
def test_nothing_else_is_an_action(text):
    with pytest.raises(ValueError, match="memory action"):
        MemoryAction.parse(text)


def test_actions_are_what_their_texts_say():
    saved = {str(a): a.variant((3,)) for a in ALL_ACTIONS}
    assert [t for t, values in saved.items() if values == "keep"] == ["keep", "offload"]
    assert {t for t, values in saved.items() if values == (3,)} == {
        f"{verb} {percent}%" for verb in ("save", "offload") for percent in (75, 50, 25)
    }
    assert [a.chunks for a in ALL_ACTIONS if a.chunked] == [2, 4, 8, 16, 32, 64]
    assert min(ALL_ACTIONS) == KEEP == BASIC_ACTIONS[0]
    with pytest.raises(ValueError, match="chunks"):
        MemoryAction(50, chunks=2)
    with pytest.raises(ValueError, match="no memory action"):
        MemoryAction(INPUTS - 1)
