"""The same methods as tools of a Model Context Protocol server; needs the package mcp (`plait[mcp]`)."""

from __future__ import annotations

import json
from typing import Any

from ...ir.errors import PlaitError, UsageError
from .methods import METHODS, call, refusal, schema
from .session import Session

INSTRUCTIONS = (
    "Plan the training of a PyTorch model on a cluster. Ask `plan` first, `what_if` for changes of it, "
    "`fits` for a strategy. Every refusal carries the smallest change that fits."
)


def server(session: Session | None = None) -> Any:
    """The server with one tool per method; raises UsageError without the package."""
    try:
        import mcp_types as types  # pyright: ignore[reportMissingImports]
        from mcp.server.lowlevel import Server  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError("an MCP server needs the package mcp: pip install 'plait[mcp]'") from None
    warm = session or Session()

    async def list_tools(context: Any, params: Any) -> Any:
        tools = [
            types.Tool(name=name, description=method.params.__doc__, input_schema=schema(name))
            for name, method in METHODS.items()
        ]
        return types.ListToolsResult(tools=tools)

    async def call_tool(context: Any, params: Any) -> Any:
        try:
            result, failed = call(warm, params.name, params.arguments or {}), False
        except PlaitError as error:
            result, failed = refusal(error), True
        text = types.TextContent(text=json.dumps(result))
        return types.CallToolResult(content=[text], structured_content=result, is_error=failed)

    return Server(
        "plait", instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool
    )


def run() -> None:
    """Serve on stdin and stdout until the client leaves."""
    service = server()
    import anyio
    from mcp.server.stdio import stdio_server  # pyright: ignore[reportMissingImports]

    async def serve() -> None:
        async with stdio_server() as (read, write):
            await service.run(read, write, service.create_initialization_options())

    anyio.run(serve)
