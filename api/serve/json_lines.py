"""Requests and answers as lines of JSON.

    {"id": 1, "method": "plan", "params": {"source": "model.json", "cluster": "8xh100"}}
    {"id": 1, "result": {...}}  or  {"id": 1, "error": {"kind": ..., "message": ...}}

`{"method": "schemas"}` gives the schemas of all parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from ...ir.errors import FileError, PlaitError, UsageError
from ...ir.files.json_files import parse
from .methods import METHODS, call, refusal, schema
from .session import Session

LONGEST = 1 << 20  # bytes of a request


def serve(lines: Iterable[str], session: Session | None = None) -> Iterator[str]:
    """One answer a line, in the order of the requests; empty lines are passed over."""
    session = session or Session()
    for line in lines:
        if line.strip():
            yield json.dumps(answer(line, session), separators=(",", ":"))


def answer(line: str, session: Session) -> dict[str, Any]:
    """The answer to one request; nothing that a request says ends the server."""
    request: dict[str, Any] = {}
    try:
        request = _request(line)
        name = request.get("method")
        if name == "schemas":
            result: dict[str, Any] = {name: schema(name) for name in METHODS}
        else:
            result = call(session, name, request.get("params", {}))
        return {"id": request.get("id"), "result": result}
    except PlaitError as error:
        return {"id": request.get("id"), "error": refusal(error)}


def _request(line: str) -> dict[str, Any]:
    if len(line) > LONGEST:
        raise UsageError(f"a request of {len(line)} bytes; at most {LONGEST} are read")
    try:
        request = parse(line.encode())
    except FileError as error:
        raise UsageError(f"not a request: {error}") from None
    if not isinstance(request, dict):
        raise UsageError("not a request: write an object with id, method and params")
    return request
