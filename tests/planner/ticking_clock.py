"""A clock for deadlines under test: it counts how often a search looks at it."""


class TickingClock:
    """Advances by `tick` seconds at every reading."""

    def __init__(self, tick: float) -> None:
        self.tick, self.seconds = tick, 0.0

    def __call__(self) -> float:
        self.seconds += self.tick
        return self.seconds
