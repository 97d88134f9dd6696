"""What a server's connections show of it: only those that were asked for something count against it."""

from __future__ import annotations

import pytest

from allswell._errors import AllswellError
from tests.support.quic_client import quic_client
from tests.support.quic_server import QuicServer, ServedConnection

pytestmark = pytest.mark.anyio


async def test_a_connection_that_was_never_used_shows_nothing() -> None:
    """It came second in a race, or too many were made."""
    with QuicServer() as server:
        async with quic_client(server.port) as client:
            await client.aclose()
    assert client.connection.history.service.barren == 0


async def test_a_connection_that_answered_has_served() -> None:
    with QuicServer() as server:
        async with quic_client(server.port) as client:
            await client.get("/hello")
            await client.aclose()
    assert (client.connection.history.service.barren, client.connection.history.service.answered) == (0, 1)


async def test_a_connection_that_was_asked_and_answered_nothing_is_barren() -> None:
    def leaves(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.goaway(stream)

    with QuicServer({b"/gone": leaves}) as server:
        async with quic_client(server.port) as client:
            with pytest.raises(AllswellError):
                await client.get("/gone")
            await client.ended()
    assert (client.connection.history.service.barren, client.connection.history.service.answered) == (1, 0)
