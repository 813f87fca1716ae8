"""Every placement and every order of a small graph, by rules written here a second time."""

from itertools import product

from plait.ir.plan.placement import PlacementGraph, PlacementTarget


class Rules:
    """A graph on devices; `best()` tries everything."""

    def __init__(
        self, graph: PlacementGraph, target: PlacementTarget, link: str, rule: str
    ) -> None:
        self.graph, self.target, self.link, self.rule = graph, target, link, rule
        self.reads = {n.id: [e for e in graph.edges if e.dst == n.id] for n in graph.nodes}
        self.writes = {n.id: [e for e in graph.edges if e.src == n.id] for n in graph.nodes}
        self.node = {n.id: n for n in graph.nodes}
        self.count = len(target.devices)

    def best(self) -> float:
        """The least makespan of all placements that fit; infinity if none does."""
        least, seen = float("inf"), set()
        for order in self.extensions([], set()):
            for devices in product(range(self.count), repeat=len(order)):
                device = dict(zip(order, devices, strict=True))
                lanes = tuple(tuple(v for v in order if device[v] == d) for d in range(self.count))
                if lanes in seen:
                    continue
                seen.add(lanes)
                if self.rule == "infer" or self.fits(device, {}, {}, {}):
                    least = min(least, self.makespan(lanes, device, least))
        return least

    def extensions(self, order, done):
        if len(order) == len(self.node):
            yield tuple(order)
        for v in self.node:
            if v not in done and all(e.src in done for e in self.reads[v]):
                yield from self.extensions([*order, v], done | {v})

    def key(self, edge):
        return (edge.src, edge.tensor) if edge.tensor is not None else (edge.src, "own", edge.dst)

    def spent(self, edge, home, away):
        link = self.target.link(home, away)
        if edge.comm_us is not None:
            return edge.comm_us
        return link.alpha_us + link.beta_us_per_byte * edge.bytes if edge.bytes else 0.0

    def makespan(self, lanes, device, least):
        """Time passes from one end of an operator to the next; transfers are booked at each."""
        head, free = [0] * self.count, [0.0] * self.count
        out, inward = [0.0] * self.count, [0.0] * self.count
        arrive, start, end, told = {}, {}, {}, set()
        while len(told) < len(self.node):
            moved = True
            while moved:
                moved = False
                for d, lane in enumerate(lanes):
                    if head[d] == len(lane) or any(
                        e.src not in told for e in self.reads[lane[head[d]]]
                    ):
                        continue
                    v = lane[head[d]]
                    there = [
                        end[e.src] if device[e.src] == d else arrive[self.key(e), d][1]
                        for e in self.reads[v]
                    ]
                    start[v] = max([free[d], *there])
                    free[d] = end[v] = (
                        start[v] + self.node[v].compute_us / self.target.devices[d].speed
                    )
                    head[d] += 1
                    moved = True
            waiting = [v for v in end if v not in told]
            v = min(waiting, key=lambda v: (end[v], start[v], device[v]))
            told.add(v)
            if end[v] >= least:
                return float("inf")
            for e in self.writes[v]:
                home, away = device[v], device[e.dst]
                if home != away and (self.key(e), away) not in arrive:
                    spent = self.spent(e, home, away)
                    begin = end[v]
                    if spent and self.link == "duplex":
                        begin = max(begin, out[home], inward[away])
                        out[home] = inward[away] = begin + spent
                    elif spent and self.link == "half-duplex":
                        begin = max(begin, out[home], out[away])
                        out[home] = out[away] = begin + spent
                    arrive[self.key(e), away] = (begin, begin + spent)
        if self.rule == "infer" and not self.fits(device, start, end, arrive):
            return float("inf")
        return max(end.values())

    def fits(self, device, start, end, arrive):
        return all(
            self.bytes_on(d, device, start, end, arrive) <= self.target.devices[d].memory_bytes
            for d in range(self.count)
        )

    def bytes_on(self, d, device, start, end, arrive):
        mine = [n for n in self.graph.nodes if device[n.id] == d]
        copies = {
            self.key(e): e
            for e in reversed(self.graph.edges)
            if device[e.dst] == d != device[e.src]
        }
        if self.rule == "train":
            memory = sum(n.mem_persistent + n.mem_output for n in mine)
            received = sum(e.bytes for e in copies.values())
            return memory + received + max((n.mem_temporary for n in mine), default=0)
        spans = []
        for n in mine:
            uses = [
                end[e.dst] if device[e.dst] == d else arrive[self.key(e), device[e.dst]][1]
                for e in self.writes[n.id]
            ]
            spans.append((start[n.id], max([end[n.id], *uses]), n.mem_output))
            spans.append((start[n.id], end[n.id], n.mem_temporary))
        for key, e in copies.items():
            readers = [
                x.dst for x in self.writes[e.src] if self.key(x) == key and device[x.dst] == d
            ]
            spans.append((arrive[key, d][0], max(end[w] for w in readers), e.bytes))
        levels = (sum(size for a, b, size in spans if a <= at < b) for at, _, _ in spans)
        return sum(n.mem_persistent for n in mine) + max(levels, default=0)
