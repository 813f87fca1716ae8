"""Random packing problems: small ones, and large ones cut out of a full rectangle."""

from random import Random

from plait.ir.plan.allocation import Buffer


def small(random: Random, most: int = 7) -> list[Buffer]:
    """A few buffers with short lives and small sizes."""
    drawn = []
    for i in range(random.randint(1, most)):
        lower = random.randint(0, 6)
        drawn.append(Buffer(f"b{i}", lower, lower + random.randint(1, 5), random.randint(1, 9)))
    return drawn


def guillotine(random: Random, count: int, width: int, height: int) -> list[Buffer]:
    """`count` buffers that fill a rectangle of time and bytes without a hole, in random order."""
    boxes = [(0, width, height)]
    while len(boxes) < count:
        start, end, size = boxes.pop(random.randrange(len(boxes)))
        if random.random() < 0.5 and end - start > 1:
            split = random.randint(start + 1, end - 1)
            boxes += [(start, split, size), (split, end, size)]
        elif size > 1:
            split = random.randint(1, size - 1)
            boxes += [(start, end, split), (start, end, size - split)]
        else:
            boxes.append((start, end, size))
    random.shuffle(boxes)
    return [Buffer(f"b{i}", a, b, size) for i, (a, b, size) in enumerate(boxes)]


def full(random: Random, steps: int, height: int) -> list[Buffer]:
    """Buffers that fill `height` bytes at every moment; not always can they be packed that low."""
    live: list[tuple[int, int]] = []
    drawn: list[tuple[int, int, int]] = []
    for now in range(steps):
        stays = [random.random() >= 0.45 for _ in live]
        drawn += [(a, now, size) for (a, size), stay in zip(live, stays, strict=True) if not stay]
        live = [b for b, stay in zip(live, stays, strict=True) if stay]
        room = height - sum(size for _, size in live)
        while room:
            size = random.randint(1, min(room, 4))
            live.append((now, size))
            room -= size
    drawn += [(start, steps, size) for start, size in live]
    return [Buffer(f"b{i}", a, b, size) for i, (a, b, size) in enumerate(drawn)]


def beyond_live_bytes() -> list[list[Buffer]]:
    """Problems of 9 to 16 buffers whose least peak is one byte above what is live at once."""
    cases = ((8, 517), (8, 867), (8, 1116), (10, 867), (10, 517), (8, 223), (8, 833))
    return [full(Random(seed), steps, 8) for steps, seed in cases]
