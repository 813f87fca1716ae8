"""`plait serve`: answers to requests on stdin, one line of JSON each, or as an MCP server."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mcp", action="store_true", help="speak the Model Context Protocol (plait[mcp])"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.mcp:
        from ..serve.mcp_server import run as run_server

        run_server()
        return 0
    from ..serve.json_lines import serve

    for line in serve(sys.stdin):
        print(line, flush=True)
    return 0
