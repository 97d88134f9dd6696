"""A server that has said why it leaves, and then fails the request that it might have answered: the reason is told."""

from __future__ import annotations

from typing import Any

import pytest

from allswell import AllswellError, ConnectionPool, ExchangeReset, RemoteProtocolError, Timeout, TransportError
from allswell._config import Timeouts
from tests.support.certificates import certificates
from tests.support.h2_script import CANCEL, ENHANCE_YOUR_CALM, NO_ERROR, Http2Server, Request, Talk, h2_tls
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection

pytestmark = pytest.mark.anyio

FAILURES: dict[str, type[AllswellError]] = {
    "silence": Timeout,
    "FIN": RemoteProtocolError,
    "RST": TransportError,
    "RST_STREAM": ExchangeReset,
}


async def failure(url: str, timeouts: Timeouts, **settings: Any) -> AllswellError:
    async with ConnectionPool(ssl_context=certificates().client_context(), **settings) as pool:
        with pytest.raises(AllswellError) as caught:
            async with pool.stream("POST", url, content=b"body", timeouts=timeouts) as response:
                await response.read()
        return caught.value


@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("how", FAILURES)
async def test_http2(how: str, answered: bool) -> None:
    """GOAWAY with an error that covers the stream, and the connection left open for a while, or for ever."""

    def handler(talk: Talk, request: Request) -> None:
        talk.read_body(request)
        talk.goaway(request.stream, ENHANCE_YOUR_CALM, b"slow down")
        if answered:
            talk.answer(request, b"half", end=False)
        if how == "RST_STREAM":
            talk.rst(request.stream, CANCEL)
        elif how == "FIN":
            talk.end()
        elif how == "RST":
            talk.connection.await_acknowledged()
            talk.connection.reset()

    with scripted_peer(Http2Server(handler), tls=h2_tls()) as peer:
        error = await failure(peer.url, Timeouts(read=3) if how == "silence" else Timeouts())
        assert type(error) is FAILURES[how]
        assert str(error).count("sent GOAWAY, ENHANCE_YOUR_CALM (slow down)") == 1, str(error)


async def test_http2_without_an_error() -> None:
    def handler(talk: Talk, request: Request) -> None:
        talk.goaway(request.stream, NO_ERROR)

    with scripted_peer(Http2Server(handler), tls=h2_tls()) as peer:
        error = await failure(peer.url, Timeouts(read=3))
        assert str(error) == f"{peer.url} sent nothing within 3 s (before that, it sent GOAWAY)"


async def test_http3() -> None:
    """HTTP/3's GOAWAY has no code: that it came is all there is to tell."""

    def handler(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.goaway(stream + 4)

    with QuicServer({b"/leaves": handler}) as server:
        error = await failure(f"https://127.0.0.1:{server.port}/leaves", Timeouts(read=3), http3="only")
        assert type(error) is Timeout
        assert str(error).endswith("sent nothing within 3 s (before that, it sent GOAWAY)")


async def test_what_we_do_is_not_laid_to_it() -> None:
    """The pool closes: that is the reason, whatever the server had said."""

    def handler(talk: Talk, request: Request) -> None:
        talk.read_body(request)
        talk.answer(request, b"half", end=False)
        talk.goaway(request.stream, ENHANCE_YOUR_CALM)

    server = Http2Server(handler)
    with scripted_peer(server, tls=h2_tls()) as peer:
        pool = ConnectionPool(ssl_context=certificates().client_context())
        async with pool.stream("GET", peer.url) as response:
            assert await response.receive() == b"half"
            await pool.aclose(0.1)
            with pytest.raises(AllswellError) as caught:
                await response.read()
        assert "GOAWAY" not in str(caught.value)
