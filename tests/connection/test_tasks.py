"""On event loops that call us, a connection has a task only while there is something that a call cannot wait for."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from allswell import AsyncClient, ConnectionPool, ProxyHop
from allswell._tasks import TaskHost, current_host
from tests.support.certificates import certificates
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import ENABLE_CONNECT_PROTOCOL, Http2Server, h2_tls
from tests.support.h3_proxy import Http3Proxy
from tests.support.peer import scripted_peer
from tests.support.proxies import SocksProxy, connect_proxy, socks_relay
from tests.support.quic_server import QuicServer
from tests.support.scripts import answers

pytestmark = pytest.mark.parametrize("uvloop", [False, True], ids=["asyncio", "uvloop"])


@contextmanager
def origin(version: str) -> Iterator[str]:
    with ExitStack() as stack:
        if version == "h3":
            yield f"https://127.0.0.1:{stack.enter_context(QuicServer()).port}/hello"
        elif version == "h2":
            yield stack.enter_context(scripted_peer(Http2Server(), tls=h2_tls())).url
        else:
            yield stack.enter_context(scripted_peer(answers(), tls=version == "h1-tls")).url


@contextmanager
def hop(kind: str) -> Iterator[ProxyHop]:
    with ExitStack() as stack:
        tls = certificates().client_context()
        if kind == "h3":
            port = stack.enter_context(Http3Proxy()).port
            yield ProxyHop("https", "localhost", port, http3="only", ssl_context=tls)
        elif kind == "h2":
            port = stack.enter_context(
                scripted_peer(Http2Proxy(settings={ENABLE_CONNECT_PROTOCOL: 1}), tls=h2_tls())
            ).port
            yield ProxyHop("https", "localhost", port, ssl_context=tls)
        elif kind == "socks5":
            yield ProxyHop("socks5", "127.0.0.1", stack.enter_context(scripted_peer(SocksProxy())).port)
        elif kind == "socks5-udp":
            over = threading.Event()
            port = stack.enter_context(scripted_peer(socks_relay(over))).port
            stack.callback(over.set)
            yield ProxyHop("socks5", "127.0.0.1", port)
        else:
            yield ProxyHop("http", "127.0.0.1", stack.enter_context(scripted_peer(connect_proxy())).port)


async def others_end() -> None:
    """The whole program but we waits for all that runs; it ends."""
    with anyio.fail_after(30):
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.gather(*others)


async def get_and_look(url: str, **settings: Any) -> None:
    context = certificates().client_context()
    async with ConnectionPool(ssl_context=context, keepalive_expiry=None, grace=0.5, **settings) as pool:
        for _ in range(2):
            assert (await pool.request("GET", url)).status == 200
            await others_end()
            assert [each.idle is not None for each in pool.snapshot().routes[0].connections] == [True]


def run(uvloop: bool, function: Any, *arguments: Any, **settings: Any) -> None:
    anyio.run(partial(function, *arguments, **settings), backend="asyncio", backend_options={"use_uvloop": uvloop})


@pytest.mark.parametrize("version", ["h1", "h1-tls", "h2", "h3"])
def test_an_idle_connection_has_none(version: str, uvloop: bool) -> None:
    with origin(version) as url:
        run(uvloop, get_and_look, url, http3="only" if version == "h3" else False)


@pytest.mark.parametrize(
    ("kind", "version"),
    [(kind, version) for kind in ("http", "socks5", "h2", "h3") for version in ("h1-tls", "h2")]
    + [(kind, "h3") for kind in ("socks5-udp", "h2", "h3")],
)
def test_nor_has_one_through_a_proxy(kind: str, version: str, uvloop: bool) -> None:
    with hop(kind) as proxy, origin(version) as url:
        run(uvloop, get_and_look, url, http3="only" if version == "h3" else False, proxies=(proxy,))


@pytest.mark.parametrize("version", ["h1", "h2", "h3"])
def test_the_end_of_the_loop_is_heard_all_the_same(version: str, uvloop: bool) -> None:
    ends: list[str] = []

    async def leave(url: str) -> None:
        await pool.request("GET", url)

    with origin(version) as url:
        pool = ConnectionPool(
            ssl_context=certificates().client_context(),
            http3="only" if version == "h3" else False,
            on_connection_end=lambda end: ends.append(end.reason),
        )
        for number in (1, 2):
            run(uvloop, leave, url)
            assert ends == ["the event loop ended"] * number
        run(uvloop, pool.aclose)


def test_who_waits_for_all_tasks_before_closing(uvloop: bool) -> None:
    """As programs do that have many requests in tasks of their own."""

    async def main(url: str) -> None:
        client = AsyncClient()
        tasks = [asyncio.create_task(client.get(f"{url}/{number}")) for number in range(5)]
        await others_end()
        assert [task.result().text for task in tasks] == [f"/{number}" for number in range(5)]
        await client.aclose()

    with scripted_peer(answers()) as peer:
        run(uvloop, main, peer.url)


def test_a_loop_that_is_over_is_not_kept(uvloop: bool) -> None:
    """What hears of a loop's end refers to the loop, and must not outlive it."""
    runs: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        runs.append(weakref.ref(asyncio.get_running_loop()))
        async with ConnectionPool() as pool:
            await pool.request("GET", url)

    with origin("h1") as url:
        anyio.run(main, backend_options={"use_uvloop": uvloop})
        gc.collect()
    assert runs[0]() is None


def test_a_loop_that_ends_as_another_thread_calls_it(uvloop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool may be collected in any thread. That the loop was open a moment before says nothing."""
    hosts: list[TaskHost] = []

    async def main() -> None:
        hosts.append(current_host())

    run(uvloop, main)
    with monkeypatch.context() as patch:
        patch.setattr(type(hosts[0]._loop), "is_closed", lambda loop: False)  # type: ignore[attr-defined]
        hosts[0].call_soon_threadsafe(lambda: None)


def test_whether_the_loop_ends_is_found_out_once_for_all_tasks(uvloop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of thousands that looked at all of them held the end of a program up for half a minute."""
    found: list[bool] = []
    looks: list[None] = []

    def all_tasks(loop: asyncio.AbstractEventLoop) -> set[asyncio.Task[Any]]:
        looks.append(None)
        return real(loop)

    async def main() -> None:
        host = current_host()

        async def wait() -> None:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                found.append(host.ending)
                raise

        for _ in range(20):
            host.spawn(wait, name="waits")
        await anyio.lowlevel.checkpoint()
        monkeypatch.setattr(asyncio, "all_tasks", all_tasks)

    real = asyncio.all_tasks
    run(uvloop, main)
    assert found == [True] * 20
    assert len(looks) == 1
