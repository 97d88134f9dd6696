"""ASGI application of hypercorn and HAProxy: ``/``, ``/10mb``, ``/echo``, ``/slow/SECONDS``, an echoing WebSocket.

``/accepted`` and ``/denied`` answer without a look at the request's body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from tests.support.servers import HELLO, TEN_MB

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """The application."""
    if scope["type"] == "http":
        await _serve(scope["path"], receive, send)
    elif scope["type"] == "websocket":
        await _echo_messages(receive, send)
    elif scope["type"] == "lifespan":
        await _live(receive, send)


async def _serve(path: str, receive: Receive, send: Send) -> None:
    if path == "/echo":
        # Part by part: what is sent back while the upload still runs is the point of it.
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})
        return
    status, size, part = 200, len(HELLO), HELLO
    if path == "/10mb":
        size, part = TEN_MB, b"0123456789" * 10_000
    elif path.startswith("/slow/"):
        await anyio.sleep(float(path.removeprefix("/slow/")))
    elif path != "/":
        status, size, part = {"/accepted": 202, "/denied": 403}.get(path, 404), 0, b""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", str(size).encode())]})
    for _ in range(0, size, len(part) or 1):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _echo_messages(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
