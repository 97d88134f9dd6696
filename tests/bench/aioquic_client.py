"""HTTP/3 over aioquic's own asyncio protocol, as its ``examples/http3_client.py`` does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

from tests.bench.clients import Answer, Fetch
from tests.bench.scenarios import Request


class _Response:
    def __init__(self, whole: asyncio.Future[None]) -> None:
        self.head: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.whole = whole


class _Client(QuicConnectionProtocol):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._http = H3Connection(self._quic)
        self._responses: dict[int, _Response] = {}

    async def fetch(self, request: Request) -> Answer:
        to = urlsplit(request.url)
        stream = self._quic.get_next_available_stream_id()
        fields = [
            (b":method", b"GET" if request.body is None else b"POST"),
            (b":scheme", b"https"),
            (b":authority", to.netloc.encode()),
            (b":path", f"{to.path}?{to.query}".encode()),
            *((name.encode(), value.encode()) for name, value in request.headers.items()),
        ]
        if request.body is not None:
            fields.append((b"content-length", b"%d" % len(request.body)))
        self._http.send_headers(stream, fields, end_stream=request.body is None)
        if request.body is not None:
            self._http.send_data(stream, request.body, end_stream=True)
        response = self._responses[stream] = _Response(self._loop.create_future())
        self.transmit()
        await response.whole
        head = dict(response.head)
        return Answer("HTTP/3", int(head[b":status"]), len(b"".join(response.pieces)), head[b"etag"])

    def quic_event_received(self, event: QuicEvent) -> None:
        for each in self._http.handle_event(event):
            if not isinstance(each, (HeadersReceived, DataReceived)) or each.stream_id not in self._responses:
                continue
            response = self._responses[each.stream_id]
            if isinstance(each, DataReceived):
                response.pieces.append(each.data)
            else:
                response.head = each.headers
            if each.stream_ended:
                del self._responses[each.stream_id]
                response.whole.set_result(None)


@asynccontextmanager
async def fetcher(host: str, port: int, ca: str) -> AsyncIterator[Fetch]:
    """A function that fetches over one connection."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN)
    configuration.load_verify_locations(ca)
    async with connect(host, port, configuration=configuration, create_protocol=_Client) as client:
        assert isinstance(client, _Client)
        yield client.fetch
