"""HTTP/0.9 over QUIC: GET and nothing else."""

from __future__ import annotations

import anyio
import pytest
from interop.http09 import Http09

from allswell._errors import AllswellError, ExchangeReset, LocalProtocolError
from allswell._report import Outcome
from tests.backends.test_http3 import seen
from tests.support.quic_client import quic_client, quic_settings, read
from tests.support.quic_server import QuicServer, ServedConnection

pytestmark = pytest.mark.anyio


async def test_get() -> None:
    settings = quic_settings(alpn=("hq-interop",), stream_window=50_000, connection_window=80_000)
    with QuicServer(alpn="hq-interop") as server:
        async with quic_client(server.port, settings, backend=Http09) as client:
            head, body = await client.get("/hello")
            assert (head.status, head.http_version, body) == (200, b"HTTP/0.9", b"hello")
            exchanges = [client.open(f"/bytes/{size}") for size in (100, 200_000, 300_000)]
            assert [len(await read(exchange)) for exchange in exchanges] == [100, 200_000, 300_000]
            end = await client.aclose()
            assert [(layer.layer, layer.outcome) for layer in end.layers] == [
                ("hq", Outcome.CLEAN),
                ("quic", Outcome.CLEAN),
                ("udp", Outcome.CLEAN),
            ]
            assert await seen(server, "close") == [(0x1D, 0x100)]


async def test_what_it_cannot_say() -> None:
    with QuicServer(alpn="hq-interop") as server:
        async with quic_client(server.port, quic_settings(alpn=("hq-interop",)), backend=Http09) as client:
            for path, method in (("/", "POST"), ("/a b", "GET")):
                with pytest.raises(LocalProtocolError):
                    client.open(path, method)


async def test_cancel_and_resets() -> None:
    settings = quic_settings(alpn=("hq-interop",), stream_window=50_000, connection_window=80_000)
    with QuicServer(alpn="hq-interop") as server:
        async with quic_client(server.port, settings, backend=Http09) as client:
            for round_ in range(10):
                exchange = client.open("/bytes/1000000")
                await exchange.receive()
                exchange.abandon()
                await seen(server, "stop", round_ + 1)
            held = client.open("/bytes/1000000")
            await held.receive()

            def reset(connection: ServedConnection) -> None:
                connection.quic.reset_stream(held.number, 7)

            server.call(reset)
            with pytest.raises(ExchangeReset) as caught, anyio.fail_after(30):
                await read(held)
            assert caught.value.code == 7
            assert (await client.get("/hello"))[1] == b"hello"


async def test_the_connection_ends_under_it() -> None:
    settings = quic_settings(alpn=("hq-interop",), stream_window=50_000)
    with QuicServer(alpn="hq-interop") as server:
        async with quic_client(server.port, settings, backend=Http09) as client:
            exchange = client.open("/bytes/1000000")
            await exchange.receive()
            server.call(lambda connection: connection.quic.close(error_code=0))
            with pytest.raises(AllswellError, match="closed the connection"):
                await read(exchange)
            assert (await client.ended()).layers[-2].outcome is Outcome.PEER_FIRST
