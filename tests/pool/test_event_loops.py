"""A pool that outlives its event loop: no error that names no cause, and in the next loop it begins anew."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from allswell import AsyncClient, AsyncTransport, ConnectionEnd, ConnectionPool
from allswell.testing import Event, Fin, Origin, RequestExecuted, Response, Rst
from tests.support.leaks import sockets_closed
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.transports import Wrapper

pytestmark = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def run(backend: str, function: Callable[[], Awaitable[Any]]) -> Any:
    """In an event loop of its own, closed afterwards."""
    return anyio.run(function, backend=backend)


def test_a_client_in_one_loop_after_another(backend: str) -> None:
    ends: list[ConnectionEnd] = []
    pool = ConnectionPool(on_connection_end=ends.append)
    client = AsyncClient(pool=pool)
    with Origin({"/here": Response(body=b"here")}, tls=False) as origin:

        async def get() -> str:
            return (await client.get(f"{origin.url}/here")).text

        with sockets_closed():
            assert [run(backend, get) for _ in range(3)] == ["here"] * 3
            assert [end.reason for end in ends] == ["the event loop ended"] * 3

            async def last() -> None:
                assert await get() == "here"
                report = await client.aclose()
                assert len(report.connections) == 1
                assert report.clean

            run(backend, last)


def test_closed_in_another_loop(backend: str) -> None:
    pool = ConnectionPool()
    with Origin(tls=False) as origin:

        async def get() -> None:
            await pool.request("GET", origin.url)

        async def close() -> None:
            assert (await pool.aclose()).connections == ()  # there is nobody any more to say goodbye to

        run(backend, get)
        run(backend, close)


def test_dropped_in_another_loop_it_warns(backend: str) -> None:
    with Origin(tls=False) as origin:

        def use() -> None:
            pool = ConnectionPool()

            async def get() -> None:
                await pool.request("GET", origin.url)

            run(backend, get)
            run(backend, get)

        with pytest.warns(ResourceWarning, match="2 connections were left open"):  # noqa: PT031 - both of it
            use()
            gc.collect()


def test_a_loop_that_ends_while_requests_wait(backend: str) -> None:
    """They and the dials are cut with it: no task is begun that nobody will ever run."""

    def silent(connection: PeerConnection) -> None:
        connection.read_until_end()

    with scripted_peer(silent, tls=True) as peer, sockets_closed():
        pool = ConnectionPool(max_connections=1)

        async def leave() -> None:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(pool.request, "GET", peer.url)
                with anyio.fail_after(30):
                    while not pool.snapshot().dials:
                        await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()

        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            run(backend, leave)
            gc.collect()
        assert [str(each.message) for each in warned] == []
        assert pool.snapshot().dials == 0


def test_used_in_another_loop_before_its_own_has_ended(backend: str) -> None:
    with Origin({"/": Response(), "/on": Response(body=b"on")}, tls=False) as origin:

        async def main() -> None:
            async with ConnectionPool() as pool:
                await pool.request("GET", origin.url)

                async def elsewhere() -> None:
                    with pytest.raises(RuntimeError, match="belongs to another event loop"):
                        await pool.request("GET", origin.url)
                    with pytest.raises(RuntimeError, match="belongs to another event loop"):
                        await pool.aclose()

                with anyio.fail_after(30):
                    await anyio.to_thread.run_sync(run, backend, elsewhere)
                    assert await (await pool.request("GET", f"{origin.url}/on")).read() == b"on"
            assert pool.close_report is not None
            assert pool.close_report.clean

        run(backend, main)
        assert origin.record.connections == (1,)


MADE: dict[str, Callable[[], AsyncClient]] = {
    "client": AsyncClient,
    "wrapped": lambda: AsyncClient(transport=Wrapper(AsyncTransport())),
    "mounted": lambda: AsyncClient(mounts={"all://": Wrapper(AsyncTransport())}),
}


@pytest.mark.parametrize("leave", ["aclose", "with"])
@pytest.mark.parametrize("made", MADE)
def test_closed_in_another_loop_before_its_own_has_ended(made: str, leave: str, backend: str) -> None:
    """It is refused and changes nothing: in its own loop the client goes on, and ends."""
    with Origin({f"/{number}": Response(body=b"%d" % number) for number in range(1, 4)}, tls=False) as origin:

        async def main() -> None:
            client = MADE[made]()
            assert (await client.get(f"{origin.url}/1")).text == "1"

            async def elsewhere() -> None:
                with pytest.raises(RuntimeError, match="belongs to another event loop"):
                    await (client.aclose() if leave == "aclose" else client.__aexit__())

            with anyio.fail_after(30):
                for number in range(2, 4):
                    await anyio.to_thread.run_sync(run, backend, elsewhere)
                    assert client.close_report is None
                    assert (await client.get(f"{origin.url}/{number}")).text == f"{number}"
                report = await client.aclose()
            assert [end.exchanges for end in report.connections] == [3]
            assert report.clean

        run(backend, main)
        assert origin.record.connections == (1,)
        origin.assert_ended_gracefully()


def test_a_user_that_leaves_in_another_loop_is_still_there(backend: str) -> None:
    async def main() -> None:
        async with ConnectionPool() as pool:
            client = AsyncClient(pool=pool)

            async def elsewhere() -> None:
                for leave in (client.aclose, pool.leave):
                    with pytest.raises(RuntimeError, match="belongs to another event loop"):
                        await leave()

            await anyio.to_thread.run_sync(run, backend, elsewhere)
            assert pool.snapshot().users == 2
            await client.aclose()
            assert not pool.closing
        assert pool.close_report is not None

    run(backend, main)


FORKING = """
import gc, os, sys, threading
import allswell, anyio

backend, url = sys.argv[1:]
pool = allswell.ConnectionPool(grace=30)

async def get(path):
    return await (await pool.request("GET", url + path)).read()

def child():
    gc.collect()  # to collect what it has of its parent's would end that
    assert anyio.run(get, "/child", backend=backend) == b"/child"
    gc.collect()
    os._exit(7)

async def main():
    await get("/parent")
    forked = os.fork()
    if not forked:
        threading.Thread(target=child).start()
        threading.Event().wait()
    assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == 7
    with anyio.fail_after(30):
        assert await get("/again") == b"/again"
    assert (await pool.aclose()).clean

anyio.run(main, backend=backend)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_a_forked_process_begins_anew_and_disturbs_nobody(backend: str) -> None:
    paths = ("/parent", "/child", "/again")
    with Origin({path: Response(body=path.encode()) for path in paths}, tls=False) as origin:
        command = [sys.executable, "-c", FORKING, backend, origin.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        origin.wait_ended(connections=2, timeout=30)
        asked = [[each.target for each in origin.record.of(RequestExecuted, number)] for number in (1, 2)]
        assert asked == [["/parent", "/again"], ["/child"]]
        assert [type(each) for each in origin.record.of(Event, 1) if isinstance(each, Fin | Rst)] == [Fin]
