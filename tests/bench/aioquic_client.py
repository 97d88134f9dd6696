"""HTTP/3 over aioquic's own asyncio protocol, as its ``examples/http3_client.py`` does it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent

if TYPE_CHECKING:
    from tests.bench.clients import Fetch


class _Client(QuicConnectionProtocol):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._http = H3Connection(self._quic)
        self._pieces: dict[int, list[bytes]] = {}
        self._waiting: dict[int, asyncio.Future[int]] = {}

    async def fetch(self, url: str, body: bytes | None = None) -> tuple[Any, int]:
        to = urlsplit(url)
        stream = self._quic.get_next_available_stream_id()
        fields = [
            (b":method", b"GET" if body is None else b"POST"),
            (b":scheme", b"https"),
            (b":authority", to.netloc.encode()),
            (b":path", to.path.encode() or b"/"),
        ]
        self._http.send_headers(stream, fields, end_stream=body is None)
        if body is not None:
            self._http.send_data(stream, body, end_stream=True)
        self._pieces[stream] = []
        waiting = self._waiting[stream] = self._loop.create_future()
        self.transmit()
        return "HTTP/3", await waiting

    def quic_event_received(self, event: QuicEvent) -> None:
        for each in self._http.handle_event(event):
            if not isinstance(each, (HeadersReceived, DataReceived)) or each.stream_id not in self._pieces:
                continue
            if isinstance(each, DataReceived):
                self._pieces[each.stream_id].append(each.data)
            if each.stream_ended:
                body = b"".join(self._pieces.pop(each.stream_id))
                self._waiting.pop(each.stream_id).set_result(len(body))


@asynccontextmanager
async def fetcher(host: str, port: int, ca: str) -> AsyncIterator[Fetch]:
    """A function that fetches over one connection."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN)
    configuration.load_verify_locations(ca)
    async with connect(host, port, configuration=configuration, create_protocol=_Client) as client:
        assert isinstance(client, _Client)
        yield client.fetch
