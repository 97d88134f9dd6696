"""How large a connection's datagrams become, on paths that carry more or less."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import anyio
import pytest
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicTransportParameters, push_quic_transport_parameters

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._quic.engine import Engine
from tests.support.certificates import certificates
from tests.support.quic_client import QuicClient, quic_client, read
from tests.support.quic_server import QuicServer
from tests.support.udp_relay import UdpRelay, Weather

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("loops")]

PATIENT = Timeouts()
MEGABYTE = 1 << 20


def trusting() -> ConnectionPool:
    return ConnectionPool(http3="only", ssl_context=certificates().client_context())


async def upload(pool: ConnectionPool, relay: UdpRelay, content: bytes | AsyncIterator[bytes]) -> int:
    """The server's count of what came."""
    response = await pool.request("POST", f"https://127.0.0.1:{relay.port}/echo", content=content, timeouts=PATIENT)
    return int(await response.read())


@pytest.mark.parametrize(
    ("mtu", "reached", "asked"),
    [
        (65527, 1452, {1452}),
        (1452, 1452, {1452}),
        (1451, 1372, {1452, 1372}),
        (1371, 1200, {1452, 1372}),
    ],
)
async def test_an_upload_finds_out(mtu: int, reached: int, asked: set[int]) -> None:
    with QuicServer() as server, UdpRelay(server.port, up=Weather(mtu=mtu)) as relay:
        async with trusting() as pool:
            assert await upload(pool, relay, bytes(4 * MEGABYTE)) == 4 * MEGABYTE
            sizes = Counter(map(len, relay.went_up))
            assert set(sizes) - set(range(1201)) - set(range(1201, reached)) == asked
            assert all(sizes[size] <= 2 for size in asked if size > reached)
            assert sizes[reached] > 100
        assert len(server.connections) == 1


async def test_who_sends_little_asks_nothing() -> None:
    with QuicServer() as server, UdpRelay(server.port) as relay:
        async with trusting() as pool:
            for _ in range(30):
                assert await upload(pool, relay, b"little") == 6
        assert max(map(len, relay.went_up)) == 1200


async def test_a_path_that_ceases_to_carry_them() -> None:
    with QuicServer() as server, UdpRelay(server.port) as relay:

        async def body() -> AsyncIterator[bytes]:
            yield bytes(MEGABYTE)
            with anyio.fail_after(30):
                while 1452 not in map(len, relay.went_up[-5:]):  # noqa: ASYNC110 - the relay is another thread
                    await anyio.sleep(0.005)
            relay.up.mtu = 1400
            relay.went_up.clear()
            yield bytes(MEGABYTE)

        async with trusting() as pool:
            assert await upload(pool, relay, body()) == 2 * MEGABYTE
        sizes = Counter(map(len, relay.went_up))
        assert sizes[1372] > 50  # after having sent the smallest, and asked again
        assert len(server.connections) == 1


async def test_another_path_begins_anew() -> None:
    async def post(client: QuicClient) -> None:
        exchange = client.open("/echo", "POST", upload=True)
        body = exchange.begin_upload()
        for _ in range(15):
            await body.send(bytes(MEGABYTE // 16))
        await body.send(bytes(MEGABYTE // 16), end=True)
        assert (await exchange.response()).status == 200
        assert int(await read(exchange)) == MEGABYTE

    with QuicServer() as server, UdpRelay(server.port) as relay:
        async with quic_client(relay.port) as client:
            await post(client)
            assert 1452 in map(len, relay.went_up)
            relay.up.mtu = 1250
            client.quic.migrate()
            relay.went_up.clear()
            await post(client)
            assert Counter(map(len, relay.went_up))[1452] <= 2


def test_no_larger_than_the_peer_accepts() -> None:
    connection = Engine(QuicConfiguration(is_client=True, alpn_protocols=["h3"]))
    connection.connect(("127.0.0.1", 443), 0.0)
    buffer = Buffer(capacity=512)
    theirs = connection._remote_initial_source_connection_id = b"theirs"
    parameters = QuicTransportParameters(
        max_udp_payload_size=1300,
        initial_source_connection_id=theirs,
        original_destination_connection_id=connection._original_destination_connection_id,
    )
    push_quic_transport_parameters(buffer, parameters)
    connection._parse_transport_parameters(buffer.data)
    assert connection.largest_payload == 1300
