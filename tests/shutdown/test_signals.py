"""A signal ends a program: what is in flight finishes, all goodbyes are said, and a second signal hurries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx2
import pytest

import allswell
from allswell import _operations
from allswell.testing import CloseNotify, GoAway, Origin, RequestExecuted, Rst
from tests.support.hypercorn import hypercorn
from tests.support.lag import LAG
from tests.support.service import MANY, Stopped, asleep, at_rest, stop
from tests.testing.clients import Gate

_ROOT = Path(__file__).parents[2]
LOOPS = ["asyncio", "trio"]


@contextmanager
def program(loop: str, origin: Origin, *, count: int, grace: float) -> Iterator[subprocess.Popen[str]]:
    """It runs, with all its requests in flight."""
    command = [sys.executable, "-m", "tests.shutdown.program", loop, origin.url, str(origin.ca_file), f"{count}"]
    with subprocess.Popen([*command, f"{grace}"], cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            origin.wait_seen(RequestExecuted, count, timeout=60)
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("version", ["h1", "h2"])
def test_what_is_in_flight_finishes(loop: str, version: Any) -> None:
    gate = Gate()
    routes = {f"/{number}": gate for number in range(MANY)}
    with Origin(routes, versions=[version]) as origin, program(loop, origin, count=MANY, grace=60) as process:
        process.send_signal(signal.SIGTERM)
        assert read_line(process) == "stopping"
        gate.let_through()
        told, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert sorted(told.splitlines()) == sorted(["clean", *(f"got /{number}" for number in range(MANY))])
        origin.wait_ended(timeout=60)
        origin.assert_ended_gracefully()
        origin.assert_no_reset()
        for number in range(MANY):
            origin.assert_executed_once(f"GET /{number}")


@pytest.mark.parametrize("loop", LOOPS)
def test_a_second_signal_hurries(loop: str) -> None:
    """What is in flight is cut; the program ends long before the grace does."""
    with Origin({"/0": Gate()}, versions=["h2"]) as origin, program(loop, origin, count=1, grace=60) as process:
        process.send_signal(signal.SIGTERM)
        assert read_line(process) == "stopping"
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=3 * LAG)
        assert process.returncode == 0
        [failed, verdict] = told.splitlines()
        assert failed.startswith("failed")
        assert verdict == "not clean"


# In this process: by a signal that pytest does not use


@pytest.mark.anyio
async def test_the_block_is_cancelled_when_all_is_closed() -> None:
    async with Origin(versions=["h2"]) as origin:
        client = allswell.AsyncClient(verify=origin.client_context(), base_url=origin.url)
        async with client, allswell.drain_on_signal(client, signals=[signal.SIGUSR1]) as stopping:
            await client.get("/")
            assert not stopping.is_set()
            os.kill(os.getpid(), signal.SIGUSR1)
            with pytest.raises(anyio.get_cancelled_exc_class()):
                await anyio.sleep_forever()
            assert stopping.is_set()
            assert client.close_report is not None
            with pytest.raises(RuntimeError):  # httpx2's word for a client that is closed
                await client.get("/")
        await origin.ended(timeout=30)
        origin.assert_ended_gracefully()


@pytest.mark.anyio
async def test_a_block_that_is_not_cancelled() -> None:
    async with Origin() as origin:
        client = allswell.AsyncClient(verify=origin.client_context(), base_url=origin.url)
        async with client, allswell.drain_on_signal(client, signals=[signal.SIGUSR1], cancel=False) as stopping:
            await client.get("/")
            os.kill(os.getpid(), signal.SIGUSR1)
            await stopping.wait()
            await origin.ended(timeout=30)
            await anyio.lowlevel.checkpoint()  # it goes on


@pytest.mark.anyio
async def test_no_signal_comes() -> None:
    """The client stays open, and what the block raises is raised as it is."""
    async with Origin() as origin, allswell.AsyncClient(verify=origin.client_context()) as client:
        with pytest.raises(LookupError):
            async with allswell.drain_on_signal(client, signals=[signal.SIGUSR1]):
                raise LookupError
        assert (await client.get(origin.url)).text == "ok"


@pytest.mark.anyio
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), LookupError()], ids=repr)
@pytest.mark.parametrize("context", ["drain_on_signal", "lifespan"])
async def test_what_a_block_raises_is_raised_as_it_is(context: str, error: BaseException) -> None:
    """And not in a group: ``sys.exit(3)`` ends the program by 3. The client has closed by then."""
    async with Origin(versions=["h1"]) as origin:
        raised: BaseException | None = None
        try:
            async with AsyncExitStack() as stack:
                if context == "lifespan":
                    life = allswell.lifespan(lambda: allswell.AsyncClient(verify=origin.client_context()))
                    client = (await stack.enter_async_context(life(None)))["client"]
                else:
                    client = await stack.enter_async_context(allswell.AsyncClient(verify=origin.client_context()))
                    await stack.enter_async_context(allswell.drain_on_signal(client, signals=[signal.SIGUSR1]))
                await client.get(origin.url)
                raise error
        except BaseException as caught:  # noqa: BLE001  looked at below
            raised = caught
        assert raised is error
        assert client.close_report is not None
        await origin.ended(timeout=30)
        origin.assert_ended_gracefully()


def test_in_another_thread_there_are_no_handlers(anyio_backend_name: str) -> None:
    async def block() -> None:
        async with allswell.AsyncClient() as client, allswell.drain_on_signal(client):
            pass

    raised: list[BaseException] = []

    def run() -> None:
        try:
            anyio.run(block, backend=anyio_backend_name)
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert [str(error) for error in raised] == ["handlers of signals can be set in the main thread only"]


@pytest.mark.anyio
async def test_one_block_in_another() -> None:
    """When the inner one is over, the outer one hears signals; and then, who had a handler before both."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        outer, inner = allswell.AsyncClient(), allswell.AsyncClient()
        async with outer, allswell.drain_on_signal(outer, signals=[signal.SIGUSR1]) as stopping:
            async with inner, allswell.drain_on_signal(inner, signals=[signal.SIGUSR1]):
                pass
            os.kill(os.getpid(), signal.SIGUSR1)
            await anyio.sleep_forever()
        assert stopping.is_set()
        assert not heard
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.anyio
async def test_a_pool() -> None:
    async with Origin() as origin:
        pool = allswell.ConnectionPool(ssl_context=origin.client_context())
        async with pool, allswell.drain_on_signal(pool, signals=[signal.SIGUSR1]):
            await pool.request("GET", origin.url)
            os.kill(os.getpid(), signal.SIGUSR1)
            await anyio.sleep_forever()
        assert pool.state == "closed"


@pytest.mark.anyio
async def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="needs a signal"):
        async with allswell.drain_on_signal(allswell.AsyncClient(), signals=[]):
            pass


# ASGI


@pytest.mark.parametrize(("worker", "signalled"), [("asyncio", signal.SIGTERM), ("trio", signal.SIGINT)])
def test_a_service(worker: str, signalled: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty requests in flight through a service, and the signal: all are answered, and all ends well.

    (In one process, hypercorn on trio has no handler of SIGTERM.)
    """
    gate = Gate()
    with Origin({f"/{number}": gate for number in range(MANY)}, versions=["h2"]) as origin:
        monkeypatch.setenv("ORIGIN", origin.url)
        monkeypatch.setenv("CA", str(origin.ca_file))
        settings = f'worker_class = "{worker}"\nshutdown_timeout = 60'
        told = _stop(settings, [signalled], origin, gate.let_through, asleep if worker == "trio" else at_rest)
        assert told.statuses == [200] * MANY
        assert "clean" in told.log, told.log
        origin.wait_ended(timeout=60)
        origin.assert_ended_gracefully()
        origin.assert_no_reset()
        for number in range(MANY):
            origin.assert_executed_once(f"GET /{number}")


@pytest.mark.parametrize("within", [None, 1.0])
def test_a_service_that_is_hurried(within: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The origin does not answer. By a second signal, or without one when the time is over, the endpoints fail.

    The server would wait for them for 600 s, and the client too.
    """
    if within is not None:
        monkeypatch.setenv("WITHIN", f"{within}")
    with Origin({f"/{number}": Gate() for number in range(MANY)}, versions=["h2"]) as origin:
        monkeypatch.setenv("ORIGIN", origin.url)
        monkeypatch.setenv("CA", str(origin.ca_file))
        signals = [signal.SIGTERM] * (2 if within is None else 1)
        told = _stop("", signals, origin, lambda: None)
        assert told.statuses == [500] * MANY
        assert "not clean" in told.log, told.log
        origin.wait_ended(timeout=60)
        assert [event.code for event in origin.record.of(GoAway)] == [0]
        assert not origin.record.of(Rst)


def _stop(
    settings: str,
    signals: list[signal.Signals],
    origin: Origin,
    then: Callable[[], None],
    rest: Callable[[int], Awaitable[None]] = at_rest,
) -> Stopped:
    """What becomes of requests through hypercorn, when it gets these signals, one after the other."""
    with hypercorn("tests.shutdown.program:app", settings, grace=600) as server:
        return anyio.run(stop, server, server.http_port, origin, signals, then, None, rest)


@pytest.mark.anyio
async def test_the_lifespan_of_an_application() -> None:
    """As Starlette uses it."""
    reports: list[allswell.CloseReport] = []
    async with Origin() as origin:

        def make() -> allswell.AsyncClient:
            return allswell.AsyncClient(verify=origin.client_context(), base_url=origin.url)

        life = allswell.lifespan(make, name="http", grace=3 * LAG, on_close=reports.append)
        async with life(None) as state:
            assert (await state["http"].get("/")).text == "ok"
        [report] = reports
        assert report.clean
        assert report.grace == 3 * LAG
        await origin.ended(timeout=30)
        origin.assert_ended_gracefully()


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["raises", "cancelled", "hurried"])
async def test_how_a_lifespan_ended_is_told_once(ending: str) -> None:
    """Whatever ends it, and as soon as it is known: a server that is hurried may end without the lifespan's end."""
    reports: list[allswell.CloseReport] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        async with Origin(versions=["h2"]) as origin:
            life = allswell.lifespan(
                lambda: allswell.AsyncClient(verify=origin.client_context()),
                signals=[signal.SIGUSR1],
                on_close=reports.append,
            )
            with anyio.CancelScope() as scope, suppress(LookupError):
                async with life(None) as state:
                    await state["client"].get(origin.url)
                    match ending:
                        case "raises":
                            raise LookupError
                        case "cancelled":
                            scope.cancel()
                            await anyio.sleep_forever()
                        case "hurried":
                            os.kill(os.getpid(), signal.SIGUSR1)
                            os.kill(os.getpid(), signal.SIGUSR1)
                            with anyio.fail_after(3 * LAG):
                                while not reports:  # noqa: ASYNC110  a call tells us
                                    await anyio.sleep(0.01)
            await origin.ended(timeout=30)
            assert [len(report.connections) for report in reports] == [1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.anyio
async def test_a_lifespan_that_raises_cuts_what_is_in_flight() -> None:
    """As the client's own block does: it does not wait for requests that may never end."""
    gate = Gate()
    async with Origin({"/": gate}, versions=["h2"]) as origin, anyio.create_task_group() as tasks:
        life = allswell.lifespan(lambda: allswell.AsyncClient(verify=origin.client_context(), grace=600))
        with anyio.fail_after(60), suppress(LookupError):
            async with life(None) as state:

                async def get() -> None:
                    with pytest.raises(httpx2.CloseError):
                        await state["client"].get(origin.url)

                tasks.start_soon(get)
                await origin.seen(RequestExecuted, timeout=30)
                raise LookupError


@pytest.mark.anyio
@pytest.mark.parametrize("context", ["drain_on_signal", "lifespan"])
async def test_an_echo_does_not_hurry(context: str) -> None:
    """On Ctrl-C a worker is told by the terminal (SIGINT), and by its parent (SIGTERM). One signal more does hurry."""
    gate = Gate()
    signals = [signal.SIGINT, signal.SIGTERM]
    heard: list[int] = []
    before = [signal.signal(each, lambda number, frame: heard.append(number)) for each in signals]
    try:
        async with Origin({"/": gate}, versions=["h2"]) as origin, AsyncExitStack() as stack:
            closed: list[str] = []
            if context == "lifespan":
                life = allswell.lifespan(lambda: allswell.AsyncClient(verify=origin.client_context()), signals=signals)
                client = (await stack.enter_async_context(life(None)))["client"]
            else:
                client = await stack.enter_async_context(allswell.AsyncClient(verify=origin.client_context()))
                await stack.enter_async_context(allswell.drain_on_signal(client, signals=signals, cancel=False))

            async def get() -> None:
                try:
                    closed.append((await client.get(origin.url)).text)
                except httpx2.CloseError:
                    closed.append("cut")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(get)
                await origin.seen(RequestExecuted, timeout=30)
                for each in signals:
                    os.kill(os.getpid(), each)
                await anyio.wait_all_tasks_blocked()
                assert not closed
                os.kill(os.getpid(), signal.SIGTERM)
            assert closed == ["cut"]
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


@pytest.mark.anyio
async def test_a_second_signal_hurries_the_end_of_a_lifespan() -> None:
    """The origin answers no goodbye, and the grace is long. The server's handler is called as before, and put back."""
    reports: list[allswell.CloseReport] = []
    heard: list[int] = []

    def of_the_server(number: int, frame: object) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGUSR1, of_the_server)
    try:
        async with Origin(versions=["h1"]) as origin:

            def make() -> allswell.AsyncClient:
                return allswell.AsyncClient(verify=origin.client_context(), base_url=origin.url)

            life = allswell.lifespan(make, grace=60, signals=[signal.SIGUSR1], on_close=reports.append)
            async with anyio.create_task_group() as tasks:

                async def tell() -> None:
                    await origin.seen(CloseNotify, timeout=30)
                    os.kill(os.getpid(), signal.SIGUSR1)

                async with life(None) as state:
                    await state["client"].get("/")
                    os.kill(os.getpid(), signal.SIGUSR1)
                    origin.silence()
                    tasks.start_soon(tell)
            [report] = reports
            assert not report.clean
            assert report.seconds < 3 * LAG
            await origin.ended(timeout=30)
        assert heard == [signal.SIGUSR1] * 2
        assert signal.getsignal(signal.SIGUSR1) is of_the_server
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.anyio
async def test_a_lifespan_in_another_thread() -> None:
    """As under a test client: there are no handlers of signals there, and none are needed."""

    async def live() -> str:
        async with allswell.lifespan()(None) as state:
            return state["client"].pool.state if state["client"].pool is not None else ""

    assert await anyio.to_thread.run_sync(anyio.run, live) == "open"


@pytest.mark.anyio
async def test_a_handler_that_outlives_the_lifespan() -> None:
    """Another's handler came after ours, and calls it for as long as it likes. An error there ends trio's loop."""
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        async with allswell.lifespan(signals=[signal.SIGUSR1])(None):
            ours = signal.getsignal(signal.SIGUSR1)
            assert callable(ours)
            signal.signal(signal.SIGUSR1, lambda number, frame: ours(number, frame))
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
        await anyio.wait_all_tasks_blocked()
        assert heard == [signal.SIGUSR1] * 3
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.anyio
async def test_a_sigterm_long_after_a_sigint_hurries(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no echo then, but somebody's second signal."""
    gate, now = Gate(), 0.0
    monkeypatch.setattr(_operations, "monotonic", lambda: now)
    async with Origin({"/": gate}, versions=["h2"]) as origin:
        signals = [signal.SIGINT, signal.SIGTERM]
        async with (
            allswell.AsyncClient(verify=origin.client_context(), grace=600) as client,
            allswell.drain_on_signal(client, signals=signals, cancel=False) as stopping,
        ):

            async def get() -> None:
                with pytest.raises(httpx2.CloseError):
                    await client.get(origin.url)

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(get)
                    await origin.seen(RequestExecuted, timeout=30)
                    os.kill(os.getpid(), signal.SIGINT)
                    await stopping.wait()
                    now = 60.0
                    os.kill(os.getpid(), signal.SIGTERM)
