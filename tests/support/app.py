"""ASGI application for the client's tests: shows what it was sent, answers in every way httpx2 has a feature for."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

import anyio

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

USER, PASSWORD = "ada", "lovelace"
_NONCE = "d2fe2b"


class Call:
    """One request, and the ways to answer it."""

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}

    async def body(self) -> bytes:
        body = b""
        async for piece in self.pieces():
            body += piece
        return body

    async def pieces(self) -> Any:
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def start(self, status: int = 200, **headers: str) -> None:
        fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def write(self, body: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        await self.start(status, content_length=str(len(body)), **headers)
        await self.write(body, more=False)

    async def answer_json(self, value: Any, status: int = 200, **headers: str) -> None:
        await self.answer(status, json.dumps(value).encode(), content_type="application/json", **headers)

    async def early_hint(self, link: bytes) -> None:
        await self._send({"type": "http.response.early_hint", "links": [link]})


async def _anything(call: Call, _: str) -> None:
    body = await call.body()
    shown = {
        "method": call.scope["method"],
        "path": call.scope["raw_path"].decode(),
        "query": call.scope["query_string"].decode(),
        "headers": call.headers,
        "body": body.decode("latin-1"),
        "client": list(call.scope["client"] or ()),
        "http_version": call.scope["http_version"],
    }
    await call.answer_json(shown)


async def _status(call: Call, status: str) -> None:
    if status in ("204", "304"):
        await call.start(int(status))
        await call.write(b"", more=False)
    else:
        await call.answer(int(status), b"as you wish")


async def _redirect(call: Call, count: str) -> None:
    left = int(count)
    status = int(call.query.get("status", "302"))
    to = f"/redirect/{left - 1}?status={status}" if left > 1 else "/anything"
    await call.body()
    await call.answer(status, b"elsewhere", location=to)


async def _set_cookie(call: Call, value: str) -> None:
    await call.answer(200, b"", set_cookie=f"flavour={value}; Path=/")


async def _basic(call: Call, _: str) -> None:
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    if call.headers.get("authorization") == expected:
        await call.answer(200, b"come in")
    else:
        await call.answer(401, b"who are you?", www_authenticate='Basic realm="here"')


async def _digest(call: Call, _: str) -> None:
    given = dict(re.findall(r'(\w+)="?([^",]+)"?', call.headers.get("authorization", "")))
    await call.body()
    if given:
        first = _md5(f"{USER}:here:{PASSWORD}")
        second = _md5(f"{call.scope['method']}:{given['uri']}")
        if given["response"] == _md5(f"{first}:{_NONCE}:{given['nc']}:{given['cnonce']}:{given['qop']}:{second}"):
            await call.answer(200, b"come in")
            return
    challenge = f'Digest realm="here", nonce="{_NONCE}", qop="auth", algorithm=MD5'
    await call.answer(401, b"who are you?", www_authenticate=challenge)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


async def _echo(call: Call, _: str) -> None:
    await call.start()
    async for piece in call.pieces():
        await call.write(piece)
    await call.write(b"", more=False)


async def _count(call: Call, _: str) -> None:
    """How many bytes came, and their digest."""
    size, digest = 0, hashlib.sha256()
    async for piece in call.pieces():
        size += len(piece)
        digest.update(piece)
    await call.answer_json({"size": size, "sha256": digest.hexdigest()})


async def _bytes(call: Call, size: str) -> None:
    await call.start(content_length=size)
    left, part = int(size), b"0123456789abcdef" * 4096
    while left:
        await call.write(part[: min(left, len(part))])
        left -= min(left, len(part))
    await call.write(b"", more=False)


async def _lines(call: Call, count: str) -> None:
    await call.start(content_type="text/plain; charset=utf-8")
    for number in range(int(count)):
        await call.write(f"line {number}\n".encode())
    await call.write(b"", more=False)


async def _events(call: Call, count: str) -> None:
    await call.start(content_type="text/event-stream")
    for number in range(int(count)):
        await call.write(f"event: tick\nid: {number}\ndata: {number}\n\n".encode())
    await call.write(b"", more=False)


async def _gzip(call: Call, text: str) -> None:
    await call.answer(200, gzip.compress(text.encode()), content_encoding="gzip")


async def _hints(call: Call, _: str) -> None:
    await call.early_hint(b"</style.css>; rel=preload; as=style")
    await call.answer(200, b"hinted")


async def _slow(call: Call, seconds: str) -> None:
    await anyio.sleep(float(seconds))
    await call.answer(200, b"at last")


_PATHS: dict[str, Callable[[Call, str], Awaitable[None]]] = {
    "anything": _anything,
    "status": _status,
    "redirect": _redirect,
    "set-cookie": _set_cookie,
    "basic": _basic,
    "digest": _digest,
    "echo": _echo,
    "count": _count,
    "bytes": _bytes,
    "lines": _lines,
    "events": _events,
    "gzip": _gzip,
    "hints": _hints,
    "slow": _slow,
}


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """The application."""
    if scope["type"] == "http":
        first, _, rest = scope["path"].lstrip("/").partition("/")
        call = Call(scope, receive, send)
        answer = _PATHS.get(first)
        if answer is None:
            await call.answer(404)
        else:
            await answer(call, rest)
    elif scope["type"] == "websocket":
        await _converse(scope, receive, send)
    elif scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return


async def _converse(scope: Message, receive: Receive, send: Send) -> None:
    """An echo, until it is told ``bye``: then it closes, with 4000."""
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.connect":
            if scope["path"] == "/refuse":
                await send({"type": "websocket.close", "code": 1008})
                return
            protocols = scope["subprotocols"]
            await send({"type": "websocket.accept", "subprotocol": protocols[0] if protocols else None})
        elif message.get("text") == "bye":
            await send({"type": "websocket.close", "code": 4000, "reason": "as you said"})
            return
        else:
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
