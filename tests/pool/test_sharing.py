"""Clients that share a pool, and go in every way: nobody reads another's bytes, nobody waits for who has gone."""

from __future__ import annotations

import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing

import anyio
import anyio.lowlevel
import httpx2
import pytest

from allswell import AsyncClient, ConnectionPool
from allswell._config import Timeouts
from allswell._messages import RequestHead
from allswell._request.request import Request as PoolRequest
from allswell._request.route import parsed
from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, Request, Talk, h2_tls
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.peer import ScriptedPeer, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers, target

pytestmark = pytest.mark.anyio

Way = Callable[[AsyncClient, "Origin"], Awaitable[None]]

#: Every answer is its path, over and over.
REPEATED = 15_000


def right(path: str) -> bytes:
    return path.encode() * REPEATED


def _h2(talk: Talk, request: Request) -> None:
    talk.answer(request, right(request.path))


def _h3(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    connection.respond(stream, 200, fields[b":path"] * REPEATED)


class Origin:
    """A server of one version, and pools for it.

    :ivar connections: how many it has accepted.
    """

    def __init__(self, version: str, url: str, server: ScriptedPeer | QuicServer) -> None:
        self.version, self.url, self._server = version, url, server

    @property
    def connections(self) -> int:
        return len(self._server.connections)

    def pool(self) -> ConnectionPool:
        """A place that is not given back would soon be missed: there are three."""
        return ConnectionPool(
            http3="only" if self.version == "h3" else False,
            pipelining=2 if self.version == "h1 pipelined" else 0,
            max_connections=3,
            ssl_context=certificates().client_context(),
        )


@pytest.fixture(params=["h1", "h1 pipelined", "h2", "h3"])
def origin(request: pytest.FixtureRequest) -> Iterator[Origin]:
    version = request.param
    if version == "h3":
        with QuicServer({b"/a": _h3}) as server:
            yield Origin(version, f"https://127.0.0.1:{server.port}/a/", server)
    elif version == "h2":
        with scripted_peer(Http2Server(_h2), tls=h2_tls()) as peer:
            yield Origin(version, f"{peer.url}/a/", peer)
    else:
        with scripted_peer(answers(body=lambda request: target(request) * REPEATED)) as peer:
            yield Origin(version, f"{peer.url}/a/", peer)


async def get(client: AsyncClient, origin: Origin, name: object) -> None:
    """A request that is answered in time, and with its own answer."""
    with anyio.fail_after(30):
        answer = await client.get(f"{origin.url}{name}")
    assert answer.content == right(f"/a/{name}")


# Ways to go: each begins a request of its own, and does not end it.


async def _begin(client: AsyncClient, origin: Origin) -> httpx2.Response:
    return await client.send(client.build_request("GET", f"{origin.url}begun"), stream=True)


async def _closes_the_response(client: AsyncClient, origin: Origin) -> None:
    response = await _begin(client, origin)
    async with aclosing(response.aiter_raw()) as pieces:
        assert await anext(pieces)
    await response.aclose()


async def _drops_the_response(client: AsyncClient, origin: Origin) -> None:
    response = await _begin(client, origin)
    del response
    gc.collect()


async def _is_cancelled(client: AsyncClient, origin: Origin, steps: int = 7) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.get, f"{origin.url}cancelled")
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def _is_cancelled_while_it_uploads(client: AsyncClient, origin: Origin) -> None:
    """The next piece never comes. (A server may have answered, and then none was asked for.)"""
    begun = anyio.Event()

    async def content() -> AsyncIterator[bytes]:
        begun.set()
        yield b"piece"
        await anyio.sleep_forever()

    async def upload() -> None:
        await client.post(f"{origin.url}cancelled", content=content())
        begun.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upload)
        await begun.wait()
        tasks.cancel_scope.cancel()


async def _leaves(client: AsyncClient, origin: Origin) -> None:
    """In mid-response; what it left unread is never asked for."""
    response = await _begin(client, origin)
    assert (await client.aclose()).connections == ()
    await response.aclose()


async def _is_dropped(client: AsyncClient, origin: Origin) -> None:
    """The caller lets go of it after this, in mid-response."""
    await _begin(client, origin)


WAYS = [
    _closes_the_response,
    _drops_the_response,
    _is_cancelled,
    _is_cancelled_while_it_uploads,
    _leaves,
    _is_dropped,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
async def test_one_goes_the_other_notices_nothing(origin: Origin, way: Way) -> None:
    async with origin.pool() as pool:
        stays = AsyncClient(pool=pool)
        await get(stays, origin, "before")
        for number in range(4):  # more often than there are places
            goes = AsyncClient(pool=pool)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(get, stays, origin, f"during{number}")
                await way(goes, origin)
            del goes
            gc.collect()
            await get(stays, origin, number)
        if origin.version in ("h2", "h3"):
            assert origin.connections == 1  # only streams were reset
        assert pool.snapshot().exchanges == 0
        gc.collect()  # the last one may have been held by a callback that was to come
        await stays.aclose()
    assert pool.close_report is not None


@pytest.mark.parametrize("seed", range(2))
async def test_leaving_in_any_order(origin: Origin, seed: int) -> None:
    """Six clients at work; each goes at some moment in some way; whoever is left is always answered rightly."""
    chance = random.Random(seed)
    async with origin.pool() as pool:

        async def live(name: int, requests: int, way: Way) -> None:
            client = AsyncClient(pool=pool)
            for number in range(requests):
                await get(client, origin, f"{name}-{number}")
            await way(client, origin)
            if way not in (_leaves, _is_dropped):
                assert (await client.aclose()).connections == ()

        async with anyio.create_task_group() as tasks:
            for name in range(6):
                tasks.start_soon(live, name, chance.randrange(6), chance.choice(WAYS))
        gc.collect()
        async with AsyncClient(pool=pool) as last:
            for number in range(4):
                await get(last, origin, f"last{number}")
        taken = pool.snapshot()
        assert (taken.users, taken.exchanges, taken.waiting) == (1, 0, 0)
        assert taken.connections <= 3


async def test_an_idle_connection_survives_its_user(origin: Origin) -> None:
    async with origin.pool() as pool:
        for number in range(3):
            async with AsyncClient(pool=pool) as client:
                await get(client, origin, number)
        assert origin.connections == 1


async def test_the_last_to_leave_closes_the_pool(origin: Origin) -> None:
    pool = origin.pool()
    clients = [AsyncClient(pool=pool) for _ in range(3)]
    for number, client in enumerate(clients):
        await get(client, origin, number)
    for client in clients[:-1]:
        assert (await client.aclose()).connections == ()
        assert not pool.closing
        await get(clients[-1], origin, "still")
    report = await clients[-1].aclose()
    assert report.connections
    assert report.clean, str(report)
    assert pool.snapshot().state == "closed"


async def test_a_dropped_response_gives_its_place_back() -> None:
    """With one connection at most, the next request waits for no one."""
    with scripted_peer(answers(body=lambda request: bytes(5_000_000))) as peer:
        async with ConnectionPool(max_connections=1) as pool:
            for _ in range(3):
                response = await pool.send(_plain(peer.url))
                assert await response.receive()
                del response
                gc.collect()
                await anyio.lowlevel.checkpoint()
            answer = await pool.request("GET", peer.url, timeouts=Timeouts(pool=30))
            assert len(await answer.read()) == 5_000_000


def _plain(url: str) -> PoolRequest:
    to, target = parsed(url)
    return PoolRequest(RequestHead(b"GET", b"http", to.authority, target, [(b"Host", to.authority)]), to.route)
