"""A client that is left in a hurry: cancelled, by Ctrl-C, with its event loop. What is idle ends politely all the same.

In every case the peer must see all goodbyes and no RST, whether the event loop goes on afterwards or ends at once.
``ALLSWELL_LEAVINGS`` sets how often each is tried (2 by default).
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import httpx2
import pytest

import allswell
import allswell.httpx
from allswell import AsyncClient, AsyncTransport, CloseReport, ConnectionEnd, ConnectionPool, PoolClosed, ProxyHop
from tests.support.certificates import certificates
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import CANCEL, NO_ERROR, Http2Server, h2_tls
from tests.support.h3_proxy import Http3Proxy
from tests.support.peer import PeerConnection, ScriptedPeer, scripted_peer
from tests.support.proxies import SocksProxy, connect_proxy
from tests.support.quic_server import QuicServer
from tests.support.scripts import answers, response
from tests.support.transports import Wrapper

TIMES = int(os.environ.get("ALLSWELL_LEAVINGS", "2"))
LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


# Ways to leave. Each uses a client that it has entered, and comes out of it; what it raises is its own affair.


class OopsError(Exception):
    """A task's failure."""


Use = Callable[[AsyncClient], Awaitable[None]]


async def _cancelled_scope(client: AsyncClient, use: Use) -> None:
    with anyio.CancelScope() as scope:
        async with client:
            await use(client)
            scope.cancel()
            await anyio.lowlevel.checkpoint()


async def _out_of_time(client: AsyncClient, use: Use) -> None:
    with anyio.move_on_after(30) as scope:
        async with client:
            await use(client)
            scope.deadline = anyio.current_time()
            await anyio.sleep_forever()


async def _out_of_time_while_closing(client: AsyncClient, use: Use) -> None:
    with anyio.move_on_after(30) as scope:
        async with client:
            await use(client)
            scope.deadline = anyio.current_time()


async def _failed_after(client: AsyncClient, use: Use) -> None:
    with suppress(TimeoutError), anyio.fail_after(30) as scope:
        async with client:
            await use(client)
            scope.deadline = anyio.current_time()
            await anyio.sleep_forever()


async def _sibling_failed(client: AsyncClient, use: Use) -> None:
    used = anyio.Event()

    async def session() -> None:
        async with client:
            await use(client)
            used.set()
            await anyio.sleep_forever()

    async def fails() -> None:
        await used.wait()
        raise OopsError

    with suppress(ExceptionGroup):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session)
            tasks.start_soon(fails)


async def _task_cancelled(client: AsyncClient, use: Use, *, again: bool = False) -> None:
    used = asyncio.Event()

    async def session() -> None:
        async with client:
            await use(client)
            used.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(session())
    await used.wait()
    task.cancel()
    if again:  # while it closes
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.wait([task])


async def _left_to_the_loop(client: AsyncClient, use: Use) -> None:
    """Nobody closes it: the loop ends under it."""
    await use(client)


async def _in_a_task_that_ends_with_the_loop(client: AsyncClient, use: Use) -> None:
    used = asyncio.Event()

    async def session() -> None:
        async with client:
            await use(client)
            used.set()
            await asyncio.Event().wait()

    LEFT.append(asyncio.create_task(session()))
    await used.wait()


async def _interrupted(client: AsyncClient, use: Use) -> None:
    """By Ctrl-C."""
    async with client:
        await use(client)
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()


async def _no_grace(client: AsyncClient, use: Use) -> None:
    await use(client)
    await client.aclose(timeout=0)


LEFT: list[asyncio.Task[None]] = []
Way = Callable[[AsyncClient, Use], Awaitable[None]]
ANYWHERE: list[Way] = [
    _cancelled_scope,
    _out_of_time,
    _out_of_time_while_closing,
    _failed_after,
    _sibling_failed,
    _no_grace,
]
#: These can only be followed by the end of the loop.
AT_THE_END: list[Way] = [_interrupted, _left_to_the_loop]
ASYNCIO: list[Way] = [_task_cancelled, partial(_task_cancelled, again=True)]


def _name(way: Any) -> str:
    return f"{way.func.__name__} again" if isinstance(way, partial) else way.__name__


def ways() -> Iterator[Any]:
    """Loop, way, and whether the loop goes on until the peers have seen the end."""
    for loop in LOOPS:
        goes_on = [*ANYWHERE, *ASYNCIO * (loop != "trio")]
        ends = [*goes_on, *AT_THE_END, *[_in_a_task_that_ends_with_the_loop] * (loop != "trio")]
        for lives, those in ((True, goes_on), (False, ends)):
            for way in those:
                after = "the loop goes on" if lives else "the loop ends"
                yield pytest.param(loop, way, lives, id=f"{loop}-{_name(way).strip('_')}-{after}")


# Peers, and what they must have seen


@dataclass
class Served:
    """What a client is to use, and how its peers tell that all was well.

    :ivar settings: the pool's.
    :ivar ended: blocks until the peers have seen the end.
    :ivar check: what they must have seen.
    """

    url: str
    ended: Callable[[], None]
    check: Callable[[], None]
    settings: dict[str, Any] = field(default_factory=dict)


@contextmanager
def served(kind: str) -> Iterator[Served]:
    """A server, perhaps a proxy, that witness."""
    with ExitStack() as stack:
        make = _SERVED.get(kind)
        yield make(stack) if make is not None else _proxied(kind, stack)


def _http1(tls: bool, stack: ExitStack) -> Served:
    peer = stack.enter_context(scripted_peer(answers(), tls=tls))
    return Served(peer.url, peer.wait_ended, partial(_saw, peer, tls=tls))


def _http2(stack: ExitStack) -> Served:
    server = Http2Server()
    peer = stack.enter_context(scripted_peer(server, tls=h2_tls()))

    def check() -> None:
        _saw(peer)
        assert server.talks[0].said_last == f"GOAWAY {NO_ERROR}"

    return Served(peer.url, peer.wait_ended, check)


def _http3(stack: ExitStack) -> Served:
    server = stack.enter_context(QuicServer())
    return Served(
        f"https://127.0.0.1:{server.port}/hello",
        partial(_closed, server),
        partial(_closed_politely, server),
        {"http3": "only"},
    )


def _proxied(kind: str, stack: ExitStack) -> Served:
    """An https origin behind a proxy. (Its end there is the proxy's affair; that it was said goodbye is not.)"""
    origin = stack.enter_context(scripted_peer(answers(), tls=True))
    if kind == "h3 proxy":
        carrier = stack.enter_context(Http3Proxy())

        def check_quic() -> None:
            _closed_politely(carrier)
            assert origin.connections[0].saw[:1] == ["close_notify"]

        hop = ProxyHop(
            "https", "localhost", carrier.port, ssl_context=certificates().client_context(), http2=False, http3=True
        )

        def closed() -> None:
            _closed(carrier)
            _until(lambda: origin.connections[0].saw)  # what the proxy passes on

        return Served(origin.url, closed, check_quic, {"proxies": (hop,)})
    script: Any = {"socks": SocksProxy(), "h2 proxy": Http2Proxy()}.get(kind) or connect_proxy()
    tls: Any = {"https proxy": True, "h2 proxy": h2_tls()}.get(kind, False)
    proxy = stack.enter_context(scripted_peer(script, tls=tls))

    def ended() -> None:
        proxy.wait_ended()
        origin.wait_ended()

    def check() -> None:
        _saw(proxy, tls=bool(tls))
        assert origin.connections[0].saw[:2] == ["close_notify", "FIN"]
        if kind == "h2 proxy":
            assert script.talks[0].said_last == f"GOAWAY {NO_ERROR}"

    scheme: Any = {"socks": "socks5h", "http proxy": "http"}.get(kind, "https")
    hop = ProxyHop(
        scheme,
        "localhost" if tls else "127.0.0.1",
        proxy.port,
        ssl_context=certificates().client_context(),
        http2=kind == "h2 proxy",
    )
    return Served(origin.url, ended, check, {"proxies": (hop,)})


_SERVED: dict[str, Callable[[ExitStack], Served]] = {
    "h1": partial(_http1, False),
    "h1 tls": partial(_http1, True),
    "h2": _http2,
    "h3": _http3,
}
PROXIES = ["http proxy", "https proxy", "socks", "h2 proxy", "h3 proxy"]


def _saw(peer: ScriptedPeer, *, tls: bool = True) -> None:
    assert [each.saw for each in peer.connections] == [["close_notify", "FIN"] if tls else ["FIN"]]


def _closed(server: QuicServer) -> None:
    _until(lambda: server.all("close"))


def _until(seen: Callable[[], object]) -> None:
    """Block until it is so, for 30 s at most: nobody tells of what happens in a peer's thread."""
    done = threading.Event()
    for _ in range(6000):
        if seen():
            return
        done.wait(0.005)


def _closed_politely(server: QuicServer) -> None:
    words = [each for each in server.seen if each[0] in ("goaway", "close", "reset", "stop")]
    assert words[:2] == [("goaway", 0), ("close", 0x1D, 0x100)]


# The tests


def leave(kind: str, loop: str, way: Way, *, lives: bool) -> tuple[CloseReport | None, list[ConnectionEnd]]:
    """Once; what was reported."""
    ends: list[ConnectionEnd] = []
    with served(kind) as server:
        pool = ConnectionPool(
            ssl_context=certificates().client_context(), on_connection_end=ends.append, **server.settings
        )

        async def use(client: AsyncClient) -> None:
            assert (await client.get(server.url)).status_code == 200

        async def main() -> None:
            await way(AsyncClient(pool=pool), use)
            if lives:
                await anyio.to_thread.run_sync(server.ended)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background have none
        try:
            with suppress(KeyboardInterrupt):
                anyio.run(main, **LOOPS[loop])
        finally:
            signal.signal(signal.SIGINT, before)
        for task in LEFT:
            assert task.cancelled()
        LEFT.clear()
        server.ended()
        server.check()
        report = pool.close_report
        if way is _left_to_the_loop:
            assert report is None
            assert pool._dispatcher is not None
            pool._dispatcher.endings.dropped = 0  # of that it would warn, and rightly
    return report, ends


def said(end: ConnectionEnd) -> list[str]:
    return [layer.said for layer in end.layers if layer.said]


@pytest.mark.parametrize(("loop", "way", "lives"), list(ways()))
@pytest.mark.parametrize("kind", ["h1", "h1 tls", "h2", "h3"])
def test_what_is_idle_ends_politely(kind: str, loop: str, way: Way, lives: bool) -> None:
    words = {"h1": ["FIN"], "h1 tls": ["close_notify", "FIN"], "h2": ["GOAWAY", "close_notify", "FIN"]}
    for _ in range(TIMES):
        report, ends = leave(kind, loop, way, lives=lives)
        told = [*(report.connections if report is not None else ()), *ends]
        assert len(ends) == 1
        for end in told:
            assert said(end) == words.get(kind, ["GOAWAY", "CONNECTION_CLOSE(0x100)"]), told
            assert end.cut == 0


@pytest.mark.parametrize("lives", [True, False], ids=["the loop goes on", "the loop ends"])
@pytest.mark.parametrize("way", [_cancelled_scope, _sibling_failed, _no_grace], ids=_name)
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", PROXIES)
def test_through_proxies(kind: str, loop: str, way: Way, lives: bool) -> None:
    for _ in range(TIMES):
        report, ends = leave(kind, loop, way, lives=lives)
        assert report is not None
        for told in (report.connections, ends):
            assert len(told) == (2 if kind in ("h2 proxy", "h3 proxy") else 1)
            for end in told:
                assert "RST" not in said(end)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("tls", [False, True])
def test_what_lies_unread_is_read_first(tls: bool, loop: str) -> None:
    """Unread, it would turn our FIN into RST."""
    unread = threading.Event()

    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(response(b"asked for"))
        connection.stall()
        connection.send(bytes(100_000))
        connection.await_acknowledged()
        unread.set()

    with scripted_peer(script, tls=tls) as peer:
        pool = ConnectionPool(ssl_context=certificates().client_context())

        async def main() -> None:
            with anyio.CancelScope() as scope:
                async with pool:
                    await pool.request("GET", peer.url)
                    peer.release()
                    assert unread.wait(30)  # and the event loop is held
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()

        anyio.run(main, **LOOPS[loop])
        peer.wait_ended()
        _saw(peer, tls=tls)


@pytest.mark.parametrize("loop", LOOPS)
def test_only_what_is_in_flight_is_aborted(loop: str) -> None:
    def stuck(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nten bytes.")

    with scripted_peer(answers(), tls=True) as idle, scripted_peer(stuck, tls=True) as busy:
        pool = ConnectionPool(ssl_context=certificates().client_context())

        async def main() -> None:
            with anyio.CancelScope() as scope:
                async with pool, pool.stream("GET", busy.url) as streamed:
                    await streamed.receive()
                    await pool.request("GET", idle.url)
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()

        anyio.run(main, **LOOPS[loop])
        idle.wait_ended()
        busy.wait_ended()
        _saw(idle)
        assert busy.connections[0].saw == ["RST"]


@pytest.mark.parametrize("cancelled", [True, False])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", ["h2", "h3"])
def test_a_request_that_another_task_waits_for_is_all_that_is_aborted(kind: str, loop: str, cancelled: bool) -> None:
    """Its stream is reset, and its task is told why. The connection says goodbye: cancelled, or with no grace."""
    asked = threading.Event()
    server = Http2Server(lambda talk, request: asked.set())
    with (
        scripted_peer(server, tls=h2_tls()) as peer,
        QuicServer({b"/never": lambda connection, stream, fields: asked.set()}) as quic,
    ):
        url = peer.url if kind == "h2" else f"https://127.0.0.1:{quic.port}/never"
        pool = ConnectionPool(ssl_context=certificates().client_context(), http3="only" if kind == "h3" else False)

        async def asks() -> None:
            with pytest.raises(PoolClosed):
                await pool.request("GET", url)

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(asks)
                await anyio.to_thread.run_sync(asked.wait)
                with anyio.CancelScope() as scope:
                    if cancelled:
                        scope.cancel()
                    await pool.aclose(timeout=None if cancelled else 0)

        anyio.run(main, **LOOPS[loop])
        if kind == "h2":
            peer.wait_ended()
            _saw(peer)
            assert server.talks[0].said_last == f"GOAWAY {NO_ERROR}"
            assert server.talks[0].requests[1].reset == CANCEL
        else:
            _closed(quic)
            assert [each for each in quic.seen if each[0] in ("goaway", "close")] == [
                ("goaway", 0),
                ("close", 0x1D, 0x100),
            ]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_server_that_answers_nothing_holds_up_nobody_for_long(loop: str) -> None:
    """The end of the loop waits for it for a moment only, and says what it had to say."""

    def mute(connection: PeerConnection) -> None:
        connection.answers_close_notify = False
        answers()(connection)
        connection.read_until_end()
        connection.stall()

    with scripted_peer(mute, tls=True) as peer:
        pool = ConnectionPool(ssl_context=certificates().client_context(), grace=60)

        async def main() -> None:
            with anyio.CancelScope() as scope:
                async with pool:
                    await pool.request("GET", peer.url)
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()

        anyio.run(main, **LOOPS[loop])  # which would take a minute: the test's own time limit is less
        peer.wait_ended()
        _saw(peer)


def test_a_loop_that_is_closed_without_ending_its_tasks() -> None:
    """``run_until_complete()`` and ``close()``: what is left of our tasks can hear nothing, but all was said before.

    (A program of its own: anyio holds on to tasks that wait in a scope of its own, and so to their sockets.)
    """
    program = """
import asyncio, sys
from allswell import ConnectionPool

pool = ConnectionPool()
loop = asyncio.new_event_loop()
loop.run_until_complete(pool.request("GET", sys.argv[1]))
loop.run_until_complete(pool.aclose(0))
loop.close()
"""
    with scripted_peer(answers()) as peer:
        subprocess.run([sys.executable, "-c", program, peer.url], check=True, timeout=100, stderr=subprocess.DEVNULL)
        peer.wait_ended()
        assert peer.connections[0].saw == ["FIN"]


# Whatever holds the connections


@asynccontextmanager
async def _client_of(library: Any, transport: Any) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    async with library.AsyncClient(transport=transport) as client:
        yield client.get


@asynccontextmanager
async def _a_pool(context: ssl.SSLContext) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    async with ConnectionPool(ssl_context=context) as pool:
        yield partial(pool.request, "GET")


HOLDERS: dict[str, Callable[[ssl.SSLContext], Any]] = {
    "pool": _a_pool,
    "httpx2": lambda context: _client_of(httpx2, AsyncTransport(context)),
    "httpx": lambda context: _client_of(httpx, allswell.httpx.AsyncTransport(context)),
    "wrapped": lambda context: _client_of(allswell, Wrapper(AsyncTransport(context))),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("holder", HOLDERS)
def test_whatever_holds_the_connections(holder: str, loop: str) -> None:
    with scripted_peer(answers(), tls=True) as peer:

        async def main() -> None:
            with anyio.CancelScope() as scope:
                async with HOLDERS[holder](certificates().client_context()) as get:
                    await get(peer.url)
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()

        anyio.run(main, **LOOPS[loop])
        peer.wait_ended()
        _saw(peer)


def test_the_command_by_ctrl_c() -> None:
    def stuck(connection: PeerConnection) -> None:
        connection.read_request()
        connection.read_until_end()

    with scripted_peer(answers(), tls=True) as idle, scripted_peer(stuck) as busy:
        program = "import sys; from allswell._cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "--insecure", idle.url, busy.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_hear_ctrl_c) as run:
            busy.wait_accepted(timeout=60)
            while not busy.connections[0].requests:
                threading.Event().wait(0.005)  # nobody tells of what happens in the peer's thread
            run.send_signal(signal.SIGINT)
            out, err = run.communicate(timeout=60)
        assert run.returncode == 130, err
        assert out == b"/"
        idle.wait_ended()
        busy.wait_ended()
        _saw(idle)
        assert busy.connections[0].saw == ["RST"]


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # where tests run in the background it is ignored


@pytest.mark.parametrize("loop", LOOPS)
def test_hurried_while_it_closes(loop: str) -> None:
    """A second close without grace ends the first one's wait; both report the same, and each connection once."""

    def mute(connection: PeerConnection) -> None:
        connection.answers_close_notify = False
        answers()(connection)
        connection.read_until_end()
        connection.stall()

    with scripted_peer(mute, tls=True) as peer:
        pool = ConnectionPool(ssl_context=certificates().client_context())
        reports: list[CloseReport] = []

        async def close(grace: float) -> None:
            reports.append(await pool.aclose(grace))

        async def main() -> None:
            await pool.request("GET", peer.url)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(close, 60)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(close, 0)

        anyio.run(main, **LOOPS[loop])
        peer.wait_ended()
        _saw(peer)
        assert reports[0] is reports[1]
        [end] = reports[0].connections
        assert said(end) == ["close_notify", "FIN"]
