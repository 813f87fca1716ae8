"""Words of strategies: read, printed, refused; and where the elements of a cut tensor lie."""

from itertools import product
from math import prod

import pytest

from plait.ir.errors import FileError, UsageError
from plait.ir.files.json_files import dump, load
from plait.ir.plan.flat_shard import FlatShard
from plait.ir.plan.strategy import ROLES, Strategy, parse_strategy
from plait.planner.question.pins import parse_pin


@pytest.mark.parametrize(
    "text",
    [
        "dp=1",
        "dp=2,tp=2",
        "pp=2,zero3=2,tp=2,sp",
        "zero3=8@3/4",
        "pp=2,dp=2,zero3=4@1/8,tp=2",
        "zero3=2@1/2,sp=2",
    ],
)
def test_a_strategy_is_read_as_it_is_printed(text):
    found = parse_strategy(text)
    assert str(found) == text
    assert load(dump(found, "text"), Strategy, "text") == found


def test_a_fraction_is_in_lowest_terms_and_changes_nothing_else():
    reduced, whole = parse_strategy("dp=2, zero3=8@6/8"), parse_strategy("dp=2,zero3=8")
    assert reduced.fraction == (3, 4)
    assert (reduced.mesh, reduced.devices, reduced.model_axes) == (
        whole.mesh,
        whole.devices,
        whole.model_axes,
    )
    assert reduced != whole
    assert str(parse_pin("embed:zero3=4@1/2").strategy) == "zero3=4@1/2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zero4=2", "unknown role"),
        ("dp", "needs a size"),
        ("dp=2,dp=2", "twice"),
        ("dp=4@1/2", r"over zero3 of two ranks or more.*not over dp=4"),
        ("zero3=1@1/2", "two ranks"),
        ("zero2=4@1/2", "not over zero2=4"),
        ("zero3=4@", "'' is not a fraction"),
        ("zero3=4@1", "not a fraction"),
        ("zero3=4@4/4", "between 0 and 1"),
        ("zero3=4@0/4", "0/4"),
        ("zero3=4@5/4", "5/4"),
        ("zero3=4@1/2/3", "1/2/3"),
        ("zero3=4@-1/2", "-1/2"),
        ("zero3=4@1/0", "1/0"),
        ("sp@1/2", "unknown role"),
        ("zero3=4@1/9999999", "not a fraction"),
    ],
)
def test_a_wrong_strategy_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        parse_strategy(text)


def test_a_file_without_fractions_is_read():
    old = b'{"format": "text", "version": 2, "axes": [["zero3", 4]]}'
    assert load(old, Strategy, "text") == parse_strategy("zero3=4")
    with pytest.raises(FileError, match=r"\$\.fraction"):
        load(old.replace(b'"axes"', b'"fraction": [1], "axes"'), Strategy, "text")


def test_only_the_role_that_shards_parameters_takes_a_fraction():
    taking = [r for r in ROLES if _reads(f"{r}=2@1/2")]
    assert taking == [r for r in ROLES if "parameter" in ROLES[r].shards]


def _reads(text: str) -> bool:
    try:
        return bool(parse_strategy(text))
    except UsageError:
        return False


@pytest.mark.parametrize("fraction", [(1, 1), (1, 4), (1, 2), (2, 3), (7, 8)])
@pytest.mark.parametrize("degree", [(2, 1, 1), (4, 1, 1), (3, 2, 1), (2, 1, 3), (2, 2, 2)])
def test_every_element_lies_in_as_many_places_as_it_should(degree, fraction):
    for elements in (0, 1, 2, 3, 5, 8, 24, 97):
        flat = FlatShard(elements, degree, fraction)
        places = list(product(*map(range, degree)))
        for splits in range(4):
            counts = [0] * elements
            for place in places:
                for first, last in flat.ranges(place, splits):
                    for element in range(first, last):
                        counts[element] += 1
            copies = prod(degree) // prod(degree[:splits])
            assert counts[: flat.sharded_elements] == [copies] * min(
                flat.sharded_elements, elements
            )
            copies *= degree[0] if splits else 1
            assert counts[flat.sharded_elements :] == [copies] * max(
                elements - flat.sharded_elements, 0
            )
        over, under = fraction
        exact = elements * (under - over + over / degree[0]) / under
        assert abs(flat.local_elements - exact) <= prod(degree)
