"""Somebody cancels all other tasks of the event loop, ours among them, and goes on: so does the pool.

(Test tools, notebooks and shutdown code do that on asyncio. On trio nobody can but the end of the run.)
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, cast

import anyio
import pytest

from allswell import ConnectionEnd, ConnectionPool, TransportError
from allswell._config import Timeouts
from allswell.testing import Origin, Response
from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, Request, Talk, h2_tls
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers, response, target

SOON = Timeouts(connect=30, read=30, write=30, pool=30)


Test = Callable[..., Coroutine[Any, Any, None]]


def in_its_own_loop(test: Test) -> Callable[..., None]:
    """On asyncio and uvloop, in the loop's main task: the test runner's own would be cancelled with all others."""

    @pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])
    @wraps(test)
    def run(uvloop: bool, **arguments: Any) -> None:
        options = {"use_uvloop": uvloop}
        anyio.run(partial(test, **arguments), backend="asyncio", backend_options=options)

    signature = inspect.signature(test)
    first = inspect.Parameter("uvloop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    made: Any = run
    made.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # pytest reads it
    return cast(Callable[..., None], made)


def pool_for(**settings: Any) -> ConnectionPool:
    return ConnectionPool(ssl_context=certificates().client_context(), **settings)


def cancel_all_but(*spared: asyncio.Task[Any]) -> None:
    me = asyncio.current_task()
    for task in asyncio.all_tasks():
        if task is not me and task not in spared:
            task.cancel()


@asynccontextmanager
async def begun(request: Coroutine[Any, Any, Any], until: Callable[[], object]) -> AsyncIterator[asyncio.Task[Any]]:
    """A task that has come so far."""
    task = asyncio.create_task(request)
    with anyio.fail_after(30):
        while not until():  # noqa: ASYNC110  the peer's doing
            await anyio.sleep(0.001)
    yield task
    if not task.done():
        task.cancel()
    await asyncio.wait([task])


def late(connection: PeerConnection) -> None:
    """The first connection has no handshake; every other one is served."""
    if connection.index == 0:
        connection.read_until_end()
        return
    connection.handshake()
    answers()(connection)


@pytest.mark.parametrize("spared", [True, False])
@in_its_own_loop
async def test_during_a_dial(spared: bool) -> None:
    """Whoever is not cancelled gets another dial; whoever comes next is served."""
    with scripted_peer(late, tls=certificates().server_context(), handshake=False) as peer:
        async with pool_for() as pool:
            request = pool.request("GET", f"{peer.url}/waits", timeouts=SOON)
            async with begun(request, lambda: peer.connections) as waits:
                cancel_all_but(*[waits] * spared)
                answer = await pool.request("GET", f"{peer.url}/next", timeouts=SOON)
                assert await answer.read() == b"/next"
                if spared:
                    assert await (await waits).read() == b"/waits"
            assert waits.cancelled() is not spared
            assert pool.snapshot().waiting == 0
        assert pool.close_report is not None
        assert pool.close_report.clean, str(pool.close_report)


@in_its_own_loop
async def test_during_a_dial_that_holds_the_only_place() -> None:
    """Who waits on another route for the place that comes free is served too."""
    with (
        scripted_peer(late, tls=certificates().server_context(), handshake=False) as silent,
        Origin({"/starved": Response(body=b"starved")}, tls=False) as other,
    ):
        async with pool_for(max_connections=1) as pool:
            dials = pool.request("GET", silent.url, timeouts=SOON)
            starves = pool.request("GET", f"{other.url}/starved", timeouts=SOON)
            async with (
                begun(dials, lambda: silent.connections),
                begun(starves, lambda: pool.snapshot().waiting == 2) as starved,
            ):
                cancel_all_but(starved)
                with anyio.fail_after(30):
                    assert await (await starved).read() == b"starved"


@in_its_own_loop
async def test_again_and_again() -> None:
    """Each time the dial is cancelled, another one is made, until one is left alone."""

    def script(connection: PeerConnection) -> None:
        if connection.index < 4:
            connection.read_until_end()
            return
        connection.handshake()
        answers()(connection)

    with scripted_peer(script, tls=certificates().server_context(), handshake=False) as peer:
        async with pool_for() as pool:
            request = pool.request("GET", f"{peer.url}/waits", timeouts=SOON)
            async with begun(request, lambda: peer.connections) as waits:
                for count in range(1, 5):
                    with anyio.fail_after(30):
                        while len(peer.connections) < count:  # noqa: ASYNC110  the peer's doing
                            await anyio.sleep(0.001)
                    cancel_all_but(waits)
                assert await (await waits).read() == b"/waits"


@dataclass
class Server:
    """A server that answers, ``/late`` when it is told to, in one version."""

    url: str
    settings: dict[str, Any]
    go_on: threading.Event


@contextmanager
def serving(version: str) -> Iterator[Server]:
    go_on = threading.Event()

    def wait(path: bytes | str) -> None:
        if path in (b"/late", "/late"):
            assert go_on.wait(30)

    def h1(connection: PeerConnection) -> None:
        while request := connection.read_request():
            wait(target(request))
            connection.send(response(target(request)))

    def h2(talk: Talk, request: Request) -> None:
        wait(request.path)
        talk.answer(request)

    def h3(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        wait(fields[b":path"])
        connection.respond(stream, 200, fields[b":path"])

    with ExitStack() as stack:
        if version == "h3":
            quic = stack.enter_context(QuicServer({b"/late": h3, b"/r": h3}))
            yield Server(f"https://127.0.0.1:{quic.port}", {"http3": "only"}, go_on)
        else:
            script: Any = Http2Server(h2) if version == "h2" else h1
            peer = stack.enter_context(scripted_peer(script, tls=h2_tls() if version == "h2" else True))
            yield Server(peer.url, {}, go_on)
        go_on.set()


@pytest.mark.parametrize("version", ["h1", "h2", "h3"])
@in_its_own_loop
async def test_idle(version: str) -> None:
    """It lives on, and serves whoever comes next."""
    ends: list[ConnectionEnd] = []
    with serving(version) as server:
        async with pool_for(on_connection_end=ends.append, **server.settings) as pool:
            await pool.request("GET", f"{server.url}/r/1", timeouts=SOON)
            cancel_all_but()
            for number in (2, 3):
                answer = await pool.request("GET", f"{server.url}/r/{number}", timeouts=SOON)
                assert await answer.read() == b"/r/%d" % number
        assert [(end.reason, end.exchanges, end.clean) for end in ends] == [("the pool closes", 3, True)]


@pytest.mark.parametrize("version", ["h1", "h2", "h3"])
@in_its_own_loop
async def test_in_flight(version: str) -> None:
    """Whoever is not cancelled itself is answered: another task drives the connection on."""
    with serving(version) as server:
        async with pool_for(**server.settings) as pool:
            request = pool.request("GET", f"{server.url}/late", timeouts=SOON)
            async with begun(request, lambda: pool.snapshot().exchanges) as waits:
                for _ in range(3):
                    cancel_all_but(waits)
                    await asyncio.sleep(0.01)
                server.go_on.set()
                answer = await waits
                assert await answer.read() == b"/late"
        assert pool.close_report is not None
        assert pool.close_report.clean, str(pool.close_report)


@in_its_own_loop
async def test_before_a_task_of_ours_could_begin() -> None:
    async with Origin({"/waits": Response(body=b"waits")}, tls=False) as origin, pool_for() as pool:
        waits = asyncio.create_task(pool.request("GET", f"{origin.url}/waits", timeouts=SOON))
        while not pool.snapshot().dials:  # noqa: ASYNC110  turn by turn
            await asyncio.sleep(0)
        cancel_all_but(waits)
        with anyio.fail_after(30):
            assert await (await waits).read() == b"waits"


@in_its_own_loop
async def test_whoever_cancels_all_can_wait_for_all() -> None:
    """``cancel()`` and ``gather()``: what takes over from a cancelled task is another task."""
    async with Origin(tls=False) as origin:
        async with pool_for() as pool:
            await pool.request("GET", origin.url, timeouts=SOON)
            ours = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            cancel_all_but()
            with anyio.fail_after(30):
                await asyncio.gather(*ours, return_exceptions=True)
            await pool.request("GET", origin.url, timeouts=SOON)
        assert origin.record.connections == (1,)


@in_its_own_loop
async def test_an_upload_is_told_that_it_was_cancelled() -> None:
    """Its body has been taken from by half, by a task that is no more."""

    taken: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        yield b"half"
        taken.append(b"half")
        await asyncio.Event().wait()

    async with Origin({"/next": Response(body=b"next")}, tls=False) as origin, pool_for() as pool:
        request = pool.request("POST", origin.url, content=body(), timeouts=SOON)
        async with begun(request, lambda: taken) as waits:
            cancel_all_but(waits)
            with pytest.raises(TransportError, match=r"the upload to .* was cancelled"):
                await waits
        assert await (await pool.request("GET", f"{origin.url}/next", timeouts=SOON)).read() == b"next"
