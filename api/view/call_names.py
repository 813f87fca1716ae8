"""Names of runs of calls: `model.layers.0–31`, `model.layers.3, 19, 35`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole part of a dotted path
MOST_NUMBERS = 4


def span_name(paths: Sequence[str]) -> str:
    """Paths that differ in one number as one name; otherwise the first and the last."""
    distinct = list(dict.fromkeys(paths))
    if len(distinct) == 1:
        return distinct[0]
    split = [NUMBER.split(path) for path in distinct]
    numbers = [NUMBER.findall(path) for path in distinct]
    places = [i for i in range(len(numbers[0])) if len({tuple(n)[i : i + 1] for n in numbers}) > 1]
    if any(parts != split[0] for parts in split) or len(places) != 1:
        return f"{distinct[0]} … {distinct[-1]}"
    place = places[0]
    text = ranges(int(n[place]) for n in numbers)
    return NUMBER.sub(_nth(place, text), distinct[0])


def ranges(numbers: Iterable[int]) -> str:
    """`0–31`, `3, 19, 35`, `0–3, 8–11, …`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(a) if a == b else f"{a}–{b}" for a, b in runs]
    if len(texts) > MOST_NUMBERS:
        texts = [*texts[: MOST_NUMBERS - 1], "…", texts[-1]]
    return ", ".join(texts)


class _nth:
    """Replace the match at one place, and no other."""

    def __init__(self, place: int, text: str) -> None:
        self.place, self.text, self.seen = place, text, 0

    def __call__(self, match: re.Match[str]) -> str:
        self.seen += 1
        return self.text if self.seen - 1 == self.place else match[0]
