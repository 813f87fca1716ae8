"""Random packing problems: small ones, and large ones cut out of a full rectangle."""

from random import Random

from plait.ir.plan.allocation import Buffer


def small(random: Random, most: int = 7) -> list[Buffer]:
    """A few buffers with short lives and small sizes."""
    found = []
    for i in range(random.randint(1, most)):
        lower = random.randint(0, 6)
        found.append(Buffer(f"b{i}", lower, lower + random.randint(1, 5), random.randint(1, 9)))
    return found


def guillotine(random: Random, count: int, width: int, height: int) -> list[Buffer]:
    """`count` buffers that fill a rectangle of time and bytes without a hole, in random order."""
    pieces = [(0, width, height)]
    while len(pieces) < count:
        start, end, size = pieces.pop(random.randrange(len(pieces)))
        if random.random() < 0.5 and end - start > 1:
            cut = random.randint(start + 1, end - 1)
            pieces += [(start, cut, size), (cut, end, size)]
        elif size > 1:
            cut = random.randint(1, size - 1)
            pieces += [(start, end, cut), (start, end, size - cut)]
        else:
            pieces.append((start, end, size))
    random.shuffle(pieces)
    return [Buffer(f"b{i}", a, b, size) for i, (a, b, size) in enumerate(pieces)]


def full(random: Random, steps: int, height: int) -> list[Buffer]:
    """Buffers that fill `height` bytes at every moment; not always can they be packed that low."""
    live: list[tuple[int, int]] = []
    found: list[tuple[int, int, int]] = []
    for now in range(steps):
        stays = [random.random() >= 0.45 for _ in live]
        found += [(a, now, size) for (a, size), stay in zip(live, stays, strict=True) if not stay]
        live = [b for b, stay in zip(live, stays, strict=True) if stay]
        room = height - sum(size for _, size in live)
        while room:
            size = random.randint(1, min(room, 4))
            live.append((now, size))
            room -= size
    found += [(start, steps, size) for start, size in live]
    return [Buffer(f"b{i}", a, b, size) for i, (a, b, size) in enumerate(found)]


def beyond_live_bytes() -> list[list[Buffer]]:
    """Problems of 9 to 16 buffers whose least peak is one byte above what is live at once."""
    cases = ((8, 517), (8, 867), (8, 1116), (10, 867), (10, 517), (8, 223), (8, 833))
    return [full(Random(seed), steps, 8) for steps, seed in cases]
