"""An ASGI application that answers as the services of many SDKs do, as far as a first call of each goes.

The path begins with how the service behaves, and a word that tells one test's calls from another's:

- ``/plain/WORD/…``: it answers.
- ``/busy/WORD/…``: the first call meets 503, as a service that asks to be called again. The others are answered.
- ``/mute/WORD/…``: no call is answered.
- ``/stall/WORD/…``: the first call is not answered, or, if it asks for a stream, answered in half. The others are.

``/calls/WORD`` tells how many calls there were.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: What every service that is asked in words answers, and its parts when it streams.
ANSWER = "all is well"
PARTS = ["all", " is", " well"]

_JSON = [(b"content-type", b"application/json")]
_EVENTS = [(b"content-type", b"text/event-stream")]

_calls: Counter[str] = Counter()


class Answer:
    """A response: JSON, or events one by one."""

    def __init__(
        self,
        value: Any = None,
        *,
        events: Iterable[str] = (),
        status: int = 200,
        fields: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        self.events = list(events)
        self.parts = [event.encode() for event in self.events] or [b"" if value is None else json.dumps(value).encode()]
        self.status = status
        self.fields = (_EVENTS if self.events else _JSON) + (fields or [])


def _data(values: Iterable[Any], *, last: str = "") -> list[str]:
    """Server-sent events without a name."""
    return [f"data: {json.dumps(value)}\n\n" for value in values] + ([f"data: {last}\n\n"] if last else [])


def _named(values: Iterable[dict[str, Any]]) -> list[str]:
    """Server-sent events, each with the name that its ``type`` says."""
    return [f"event: {value['type']}\ndata: {json.dumps(value)}\n\n" for value in values]


def _chat(asked: Any) -> Answer:
    """OpenAI's chat completions, which others have taken over."""
    common = {"id": "chat-1", "created": 1, "model": "fake"}
    if asked.get("stream"):
        chunks = [
            {
                **common,
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": part}, "finish_reason": None}],
            }
            for part in PARTS
        ]
        return Answer(events=_data(chunks, last="[DONE]"))
    message = {"role": "assistant", "content": ANSWER}
    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return Answer({**common, "object": "chat.completion", "choices": choices, "usage": usage})


def _messages(asked: Any) -> Answer:
    """Anthropic's messages."""
    usage = {"input_tokens": 1, "output_tokens": 3}
    message = {"id": "m-1", "type": "message", "role": "assistant", "model": "fake", "stop_sequence": None}
    if not asked.get("stream"):
        content = [{"type": "text", "text": ANSWER}]
        return Answer({**message, "content": content, "stop_reason": "end_turn", "usage": usage})
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": part}} for part in PARTS
    ]
    begun: dict[str, Any] = {**message, "content": [], "stop_reason": None, "usage": usage}
    ended = {"stop_reason": "end_turn", "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *deltas,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": ended, "usage": usage},
        {"type": "message_stop"},
    ]
    return Answer(events=_named(events))


def _content(text: str) -> dict[str, Any]:
    return {"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP"}]}


def _cohere(asked: Any) -> Answer:
    """Cohere's chat, second version."""
    if not asked.get("stream"):
        message = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
        return Answer({"id": "c-1", "finish_reason": "COMPLETE", "message": message})
    deltas = [
        {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": part}}}} for part in PARTS
    ]
    return Answer(events=_named([*deltas, {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}}]))


def _mcp(asked: Any) -> Answer:
    """The Model Context Protocol: a server with one tool."""
    results = {
        "initialize": {
            "protocolVersion": (asked.get("params") or {}).get("protocolVersion"),
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "fake", "version": "1"},
        },
        "tools/list": {"tools": [{"name": ANSWER, "inputSchema": {"type": "object"}}]},
    }
    if asked.get("method") not in results:
        return Answer(status=202)
    return Answer({"jsonrpc": "2.0", "id": asked["id"], "result": results[asked["method"]]})


def _answer(path: str, asked: Any) -> Answer:
    match path.split("?")[0].strip("/").split("/"):
        case [*_, "chat", "completions"]:
            return _chat(asked)
        case [*_, "messages"]:
            return _messages(asked)
        case [*_, model] if model.endswith(":generateContent"):
            return Answer(_content(ANSWER))
        case [*_, model] if model.endswith(":streamGenerateContent"):
            return Answer(events=_data(map(_content, PARTS)))
        case [*_, "v2", "chat"]:
            return _cohere(asked)
        case ["mcp"]:
            return _mcp(asked)
        case [index, "_doc", number]:
            found = {"_index": index, "_id": number, "found": True, "_source": {"text": ANSWER}}
            return Answer(found, fields=[(b"x-elastic-product", b"Elasticsearch")])
        case ["collections"]:
            return Answer({"result": {"collections": [{"name": ANSWER}]}, "status": "ok", "time": 0.1})
        case [token, "getMe"] if token.startswith("bot"):
            return Answer({"ok": True, "result": {"id": 1, "is_bot": True, "first_name": ANSWER, "username": "fake"}})
        case ["token"]:
            return Answer({"access_token": "secret", "token_type": "Bearer", "expires_in": 3600})
        case ["graphql"]:
            return Answer({"data": {"text": ANSWER}})
        case ["events"]:
            return Answer(events=_data(PARTS))
        case ["fresh"]:
            return Answer({"text": ANSWER}, fields=[(b"cache-control", b"max-age=60")])
        case _:
            return Answer([{"text": ANSWER}])


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _gone(receive: Receive) -> None:
    """Wait until the client has given up."""
    while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
        pass


async def _talk(receive: Receive, send: Send) -> None:
    """A WebSocket that says everything again."""
    await send({"type": "websocket.accept"})
    await receive()
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """The application."""
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    if scope["type"] == "websocket":
        await _talk(receive, send)
        return
    _, behaviour, word, *rest = scope["path"].split("/")
    if behaviour == "calls":
        await _send(send, Answer(_calls[word]), None)
        return
    body = await _body(receive)
    asked = json.loads(body) if body[:1] == b"{" else {}
    answer = _answer("/".join(rest), asked)
    _calls[word] += 1
    first = _calls[word] == 1
    if behaviour == "busy" and first:
        answer = Answer({"error": {"message": "busy", "code": 503}}, status=503, fields=[(b"retry-after", b"0")])
    silent = behaviour == "mute" or (behaviour == "stall" and first)
    if silent and not answer.events:
        await _gone(receive)
    elif silent:
        await _send(send, answer, len(answer.parts) // 2)
        await _gone(receive)
    else:
        await _send(send, answer, None)


async def _send(send: Send, answer: Answer, parts: int | None) -> None:
    """All of it, or as many of its parts."""
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.fields})
    for part in answer.parts[:parts]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    if parts is None:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
