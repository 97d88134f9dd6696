"""Servers that fall silent under HTTP/3: restarted without a word, or behind a path that is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from allswell import AsyncClient, ConnectionPool, Timeout
from allswell._config import Timeouts
from tests.support.certificates import certificates
from tests.support.lag import silent_after, those_there_are_silent_after
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.udp_relay import UdpRelay

pytestmark = pytest.mark.anyio


SOON = Timeouts(connect=30, read=30, write=30, pool=30, total=30)


def trusting(**settings: Any) -> ConnectionPool:
    return ConnectionPool(http3="only", ssl_context=certificates().client_context(), **settings)


@pytest.fixture
def fall_silent(monkeypatch: pytest.MonkeyPatch) -> Callable[[QuicServer], None]:
    """Has the first connection's server say nothing more; that is believed as soon as outside of tests."""

    def first(server: QuicServer) -> None:
        server.connections[0].silent = True
        those_there_are_silent_after(monkeypatch)

    return first


def url(port: int, path: str = "/hello") -> str:
    return f"https://127.0.0.1:{port}{path}"


async def test_a_server_that_has_fallen_silent_gets_no_new_requests(fall_silent: Callable[[QuicServer], None]) -> None:
    """It may have lost all it knew, or the path is gone: after three probes without an answer others go elsewhere."""
    with QuicServer() as server:
        async with trusting() as pool:
            await pool.request("GET", url(server.port), timeouts=SOON)
            fall_silent(server)
            [[connection]] = [route.connections for route in pool.snapshot().routes]
            assert connection.capacity > 0
            async with anyio.create_task_group() as tasks:
                answers: list[bytes] = []

                async def ask() -> None:
                    response = await pool.request("POST", url(server.port, "/echo"), content=b"once", timeouts=SOON)
                    assert response.attempts == []
                    answers.append(await response.read())

                tasks.start_soon(ask)
                with anyio.fail_after(30):
                    while pool.snapshot().routes[0].connections[0].capacity:  # noqa: ASYNC110 - nothing tells of it
                        await anyio.sleep(0.01)
                assert (await pool.request("GET", url(server.port), timeouts=SOON)).status == 200
                assert len(server.connections) == 2
                assert answers == []
                # The path is back: whoever waited has his answer, and others may come.
                server.connections[0].silent = False
            assert answers == [b"4"]
            assert pool.snapshot().routes[0].connections[0].capacity > 0


@pytest.mark.parametrize("content", [None, b"small", bytes(400_000)])
async def test_what_a_silent_server_left_unanswered_goes_elsewhere(
    content: bytes | None, fall_silent: Callable[[QuicServer], None]
) -> None:
    """As when it was restarted, and lost its state and the key to say so. Not what must not be done twice."""
    with QuicServer() as server:
        async with trusting() as pool:
            await pool.request("GET", url(server.port), timeouts=SOON)
            fall_silent(server)
            bodies: list[bytes] = []

            async def ask() -> None:
                response = await pool.request("PUT", url(server.port, "/echo"), content=content, timeouts=SOON)
                assert [(each.why, each.processed) for each in response.attempts] == [
                    ("the server has fallen silent", "perhaps")
                ]
                bodies.append(await response.read())

            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(ask)
            assert bodies == [str(len(content or b"")).encode()] * 5
            assert len(server.connections) == 2
            report = await pool.aclose()
        assert sorted(end.exchanges for end in report.connections) == [5, 6]


async def test_where_another_connection_falls_silent_too_the_read_timeout_decides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent_after(monkeypatch)
    asked: list[int] = []

    def mute(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        asked.append(stream)
        connection.silent = True

    with QuicServer({b"/mute": mute}) as server:
        async with trusting(grace=0.2) as pool:
            with pytest.raises(Timeout, match="sent nothing"):
                await pool.request(
                    "PUT", url(server.port, "/mute"), content=b"x", timeouts=Timeouts(connect=30, read=12)
                )
    assert len(asked) <= 2


async def test_in_a_black_out_there_is_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than it takes to give up there: the request waits, and is answered when the path is back."""
    with QuicServer() as server, UdpRelay(server.port) as relay:
        async with trusting() as pool:
            await pool.request("GET", url(relay.port), timeouts=SOON)
            relay.black_out(6.0)
            those_there_are_silent_after(monkeypatch)
            patient = Timeouts(connect=0.5, read=40, write=40, pool=40)
            response = await pool.request("GET", url(relay.port), timeouts=patient)
            assert (await response.read(), response.attempts) == (b"hello", [])
            assert len(server.connections) == 1


@pytest.mark.parametrize("seconds", [0.2, 0.4, 0.6, 0.8, 1.0])
async def test_cancelled_while_the_server_is_silent(seconds: float, fall_silent: Callable[[QuicServer], None]) -> None:
    with QuicServer() as server:
        async with trusting() as pool:
            await pool.request("GET", url(server.port), timeouts=SOON)
            fall_silent(server)
            with anyio.move_on_after(seconds):
                await pool.request("GET", url(server.port), timeouts=SOON)
            assert (await pool.request("GET", url(server.port), timeouts=SOON)).status == 200
            states = pool.snapshot().routes[0]
            assert sum(each.exchanges for each in states.connections) == 0
            assert states.waiting == 0


@pytest.mark.parametrize("error", [SystemExit(3), ZeroDivisionError()], ids=repr)
async def test_a_hook_that_fails_on_the_way_elsewhere_is_told_as_it_is(
    error: BaseException, fall_silent: Callable[[QuicServer], None]
) -> None:
    async def trace(name: str, info: dict[str, Any]) -> None:
        if server.connections and server.connections[0].silent and "connect" in name.rpartition(".")[0]:
            raise error

    with QuicServer() as server:
        async with trusting() as pool, AsyncClient(pool=pool, timeout=30) as client:
            await client.get(url(server.port))
            fall_silent(server)
            with pytest.raises(type(error)) as caught:
                await client.get(url(server.port), extensions={"trace": trace})
            assert caught.value is error
            server.connections[0].silent = False
            assert (await client.get(url(server.port))).status_code == 200
