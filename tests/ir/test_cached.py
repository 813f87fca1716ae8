"""Cached methods: computed once per object and arguments, None and errors included."""

import gc
import weakref

import pytest

from plait.ir.cached import cached_method


class Squares:
    def __init__(self) -> None:
        self.computed: list[int] = []

    @cached_method
    def square(self, number: int) -> int | None:
        """The square; None of odd numbers."""
        self.computed.append(number)
        if number < 0:
            raise ValueError(number)
        return number * number if number % 2 == 0 else None

    @cached_method
    def halvings(self, number: int) -> int:
        return 0 if number == 0 else 1 + self.halvings(number // 2)


def test_each_result_is_computed_once_for_each_object():
    one, other = Squares(), Squares()
    assert [one.square(n) for n in (2, 3, 2, 3)] == [4, None, 4, None]
    assert one.computed == [2, 3]
    assert other.square(2) == 4
    assert other.computed == [2]


def test_errors_are_not_kept():
    squares = Squares()
    for _ in range(2):
        with pytest.raises(ValueError, match="-1"):
            squares.square(-1)
    assert squares.computed == [-1, -1]


def test_a_method_may_call_itself():
    assert Squares().halvings(1000) == 10


def test_results_go_with_their_object():
    squares = Squares()
    squares.square(2)
    gone = weakref.ref(squares)
    del squares
    gc.collect()
    assert gone() is None
