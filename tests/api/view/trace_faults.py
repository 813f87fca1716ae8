"""What is wrong with a Chrome trace, by the documented format ("Trace Event Format"): phases X, M, C, s
and f with their fields, nested slices of a thread, flows with both ends in slices, counters in order."""

from collections import defaultdict
from typing import Any

Event = dict[str, Any]
FIELDS = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid"},
    "M": {"name", "pid", "args"},
    "C": {"name", "ts", "pid", "args"},
    "s": {"name", "cat", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "id", "ts", "pid", "tid"},
}
ROUNDING = 1e-3  # microseconds: a nanosecond, the clock of readers


def trace_faults(body: dict[str, Any]) -> list[str]:
    events: list[Event] = body["traceEvents"]
    faults = [f"fields of {e}" for e in events if not FIELDS.get(e["ph"], {"?"}) <= e.keys()]
    if faults:
        return faults
    slices = [e for e in events if e["ph"] == "X"]
    faults += [f"times of {e}" for e in slices if e["dur"] < 0 or e["ts"] < 0]
    for kind, key in (("process_name", ("pid",)), ("thread_name", ("pid", "tid"))):
        named = {
            tuple(e[k] for k in key) for e in events if e["name"] == kind and e["args"]["name"]
        }
        used = {tuple(e[k] for k in key) for e in slices}
        faults += [f"no {kind} of {place}" for place in sorted(used - named)]
    threads: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in slices:
        threads[event["pid"], event["tid"]].append(event)
    for place, members in threads.items():
        faults += _crossings(place, members)
    return [*faults, *_flows(events, threads), *_counters(events)]


def _crossings(place: tuple[int, int], members: list[Event]) -> list[str]:
    faults: list[str] = []
    around: list[Event] = []
    for event in sorted(members, key=lambda e: (e["ts"], -e["dur"])):
        while around and _end(around[-1]) <= event["ts"] + ROUNDING:
            around.pop()
        if around and _end(event) > _end(around[-1]) + ROUNDING:
            faults.append(f"{event['name']} crosses {around[-1]['name']} on {place}")
        around.append(event)
    return faults


def _flows(events: list[Event], threads: dict[tuple[int, int], list[Event]]) -> list[str]:
    ends: dict[str, dict[int, Event]] = {"s": {}, "f": {}}
    faults: list[str] = []
    for event in events:
        if event["ph"] not in ends:
            continue
        if event["id"] in ends[event["ph"]]:
            faults.append(f"two {event['ph']} of flow {event['id']}")
        ends[event["ph"]][event["id"]] = event
    faults += [f"one end of flow {n}" for n in ends["s"].keys() ^ ends["f"].keys()]
    for number in ends["s"].keys() & ends["f"].keys():
        start, end = ends["s"][number], ends["f"][number]
        if start["ts"] > end["ts"] or end.get("bp") != "e":
            faults.append(f"order of flow {number}")
    for event in (*list(ends["s"].values())[:200], *list(ends["f"].values())[:200]):
        if not any(_holds(x, event["ts"]) for x in threads[event["pid"], event["tid"]]):
            faults.append(f"no slice around {event}")
    return faults


def _counters(events: list[Event]) -> list[str]:
    times: dict[tuple[int, str], list[float]] = defaultdict(list)
    faults: list[str] = []
    for event in events:
        if event["ph"] == "C":
            times[event["pid"], event["name"]].append(event["ts"])
            if any(value < 0 for value in event["args"].values()):
                faults.append(f"a counter below 0: {event}")
    return faults + [f"order of counter {k}" for k, v in times.items() if v != sorted(v)]


def _end(event: Event) -> float:
    return event["ts"] + event["dur"]


def _holds(event: Event, microseconds: float) -> bool:
    return event["ts"] - ROUNDING <= microseconds <= _end(event) + ROUNDING
