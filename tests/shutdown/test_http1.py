"""How HTTP/1.1 connections end on the wire, seen by the peer and (where it may capture) by the interface itself."""

from __future__ import annotations

import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from allswell import CloseReport, ConnectionPool
from allswell._config import Timeouts
from allswell._deadline import Deadline
from allswell._errors import AllswellError, PoolClosed, Timeout
from allswell._filters.stack import Stack
from allswell._pool import endings
from allswell._report import ConnectionEnd, Outcome
from tests.support.capture import Capture, capture
from tests.support.certificates import certificates
from tests.support.lag import LAG
from tests.support.leaks import await_client_states
from tests.support.loopback import capture_available
from tests.support.peer import PeerConnection, Script, ScriptedPeer, scripted_peer
from tests.support.scripts import Ending, answers, half_response, huge, never_ends, response

pytestmark = pytest.mark.anyio

TLS_VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def pool_for(**settings: Any) -> ConnectionPool:
    settings.setdefault("grace", 3 * LAG)  # what answers is not waited for that long, on the slowest machine
    return ConnectionPool(ssl_context=certificates().client_context(), **settings)


@contextmanager
def watched(peer: ScriptedPeer) -> Iterator[Capture | None]:
    """The capture of the peer's port, where this process may capture."""
    with capture(peer.port, "127.0.0.1") if capture_available() else nullcontext() as seen:
        yield seen


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Look again every moment, until it holds; nobody tells of what happens in the peer's threads."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.005)


def assert_no_rst(seen: Capture | None, connections: int) -> None:
    if seen is not None:
        seen.settle(connections=connections)
        assert not seen.any_rst(), f"\n{seen}"


def layers(end: ConnectionEnd) -> list[tuple[str, str, str, Outcome]]:
    return [(layer.layer, layer.said, layer.heard, layer.outcome) for layer in end.layers]


async def several(pool: ConnectionPool, url: str, count: int) -> None:
    """So many connections, all idle again."""
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(get, pool, f"{url}/{number}")


async def get(pool: ConnectionPool, url: str) -> None:
    await pool.request("GET", url, timeouts=Timeouts(connect=30, read=30, pool=30))


def rude(together: int) -> Script:
    """Answers once, together with the others; then it hears the client's goodbye, and never says its own."""
    answer = answers(1, together=together, ending=Ending.NONE)

    def script(connection: PeerConnection) -> None:
        connection.answers_close_notify = False
        answer(connection)
        connection.read_until_end()
        connection.stall()

    return script


@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_idle_https(version: ssl.TLSVersion) -> None:
    context = certificates().server_context(version=version)
    with scripted_peer(answers(together=5), tls=context) as peer, watched(peer) as seen:
        pool = pool_for()
        await several(pool, peer.url, 5)
        report = await pool.aclose()
        await peer.ended(connections=5)
        assert [connection.saw for connection in peer.connections] == [["close_notify", "FIN"]] * 5
        for connection in peer.connections:
            assert connection.when("close_notify") <= connection.when("FIN")
        assert_no_rst(seen, 5)
        assert report.clean
        assert len(report.connections) == 5
        for each in report.connections:
            assert layers(each) == [
                ("h1", "", "", Outcome.CLEAN),
                ("tls", "close_notify", "close_notify", Outcome.CLEAN),
                ("tcp", "FIN", "FIN", Outcome.CLEAN),
            ]
        assert report.seconds < LAG


async def test_idle_http() -> None:
    with scripted_peer(answers(together=3)) as peer, watched(peer) as seen:
        pool = pool_for()
        await several(pool, peer.url, 3)
        report = await pool.aclose()
        await peer.ended(connections=3)
        assert [connection.saw for connection in peer.connections] == [["FIN"]] * 3
        assert_no_rst(seen, 3)
        assert report.clean
        assert layers(report.connections[0]) == [("h1", "", "", Outcome.CLEAN), ("tcp", "FIN", "FIN", Outcome.CLEAN)]


@pytest.mark.parametrize("tls", [False, True])
async def test_idle_unix_socket(tls: bool, tmp_path: Path) -> None:
    with scripted_peer(answers(), unix_path=tmp_path / "socket", tls=tls) as peer:
        pool = pool_for(uds=str(tmp_path / "socket"))
        scheme = "https" if tls else "http"
        assert await (await pool.request("GET", f"{scheme}://localhost/a")).read() == b"/a"
        report = await pool.aclose()
        await peer.ended()
        assert peer.connections[0].saw == (["close_notify", "FIN"] if tls else ["FIN"])
        assert report.clean


@pytest.mark.parametrize("version", TLS_VERSIONS)
async def test_unread_bytes_do_not_become_rst(version: ssl.TLSVersion) -> None:
    """Unasked bytes arrive just when the pool closes: they are drained, not answered by RST."""
    sent = threading.Event()
    go = threading.Event()

    def script(connection: PeerConnection) -> None:
        answers(1, ending=Ending.NONE)(connection)
        assert go.wait(30)
        connection.send(bytes(100_000))
        sent.set()

    with scripted_peer(script, tls=certificates().server_context(version=version)) as peer, watched(peer) as seen:
        pool = pool_for()
        await pool.request("GET", f"{peer.url}/")
        go.set()
        assert sent.wait(30)  # with the event loop held: the bytes lie in the kernel, unread
        report = await pool.aclose()
        await peer.ended()
        assert peer.connections[0].saw == ["close_notify", "FIN"]
        assert_no_rst(seen, 1)
        assert report.clean


async def test_tickets_alone_do_not_become_rst() -> None:
    """Closed right after the handshake's tickets came in together with the response."""
    with scripted_peer(answers(), tls=True) as peer, watched(peer) as seen:
        for _ in range(10):
            async with pool_for() as pool:
                await pool.request("GET", f"{peer.url}/")
            assert pool.close_report is not None
            assert pool.close_report.clean
        await peer.ended(connections=10)
        assert [connection.saw for connection in peer.connections] == [["close_notify", "FIN"]] * 10
        assert_no_rst(seen, 10)


@pytest.mark.parametrize("tls", [False, True])
async def test_no_grace_says_all_and_waits_for_nothing(tls: bool) -> None:
    with scripted_peer(never_ends(), tls=tls) as peer:
        pool = pool_for()
        await pool.request("GET", f"{peer.url}/")
        began = monotonic()
        report = await pool.aclose(0)
        assert monotonic() - began < LAG
        await peer.ended()
        assert peer.connections[0].saw == (["close_notify", "FIN"] if tls else ["FIN"])
        assert [layer.outcome for layer in report.connections[0].layers[1:]] == [Outcome.TIMED_OUT] * (2 if tls else 1)
        assert [layer.said for layer in report.connections[0].layers if layer.said] == peer.connections[0].saw


async def test_rude_peer_costs_at_most_the_grace() -> None:
    with scripted_peer(never_ends(), tls=True) as peer:
        pool = pool_for()
        await pool.request("GET", f"{peer.url}/")
        began = monotonic()
        report = await pool.aclose(0.6)
        assert monotonic() - began < 0.6 + LAG
        await peer.ended()
        assert peer.connections[0].saw == ["close_notify", "FIN"]
        assert not report.clean
        assert [layer.outcome for layer in report.connections[0].layers[1:]] == [Outcome.TIMED_OUT] * 2
        assert "timed-out" in str(report)


@pytest.mark.slow
async def test_200_rude_peers_cost_one_grace() -> None:
    with scripted_peer(rude(200), tls=True) as peer:
        pool = pool_for(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None)
        await several(pool, peer.url, 200)
        began = monotonic()
        report = await pool.aclose(1.0)
        assert monotonic() - began < 1.0 + LAG  # not 200 times one
        assert len(report.connections) == 200
        await peer.ended(connections=200)
        assert [connection.saw for connection in peer.connections] == [["close_notify", "FIN"]] * 200


async def test_rude_peer_is_waited_for_less_the_second_time() -> None:
    """Beside one of which nothing is known: that one is given the whole grace."""
    ends: list[ConnectionEnd] = []

    with scripted_peer(never_ends(), tls=True) as known, scripted_peer(never_ends(), tls=True) as unknown:
        pool = pool_for(grace=4.0, on_connection_end=ends.append)
        await pool.request("GET", known.url)
        await pool.drain()
        for peer in (unknown, known):
            await pool.request("GET", peer.url)
        await pool.aclose()
        assert [end.route for end in ends] == [known.url, known.url, unknown.url]
        for peer, count in ((known, 2), (unknown, 1)):
            await peer.ended(connections=count)
            assert [connection.saw for connection in peer.connections] == [["close_notify", "FIN"]] * count


@pytest.mark.parametrize("tls", [False, True])
async def test_the_event_loop_is_held_over_the_end_of_the_grace(tls: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """That time is not what the connections have to finish: each has ended, and was told of, when aclose() returns."""
    monkeypatch.setattr(endings, "_SLACK", 0.5)
    hear_out = Stack.hear_out

    async def in_many_turns(stack: Stack[Any], deadline: Deadline) -> Any:
        heard = await hear_out(stack, deadline)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        return heard

    monkeypatch.setattr(Stack, "hear_out", in_many_turns)
    ends: list[ConnectionEnd] = []
    told: list[int] = []

    with scripted_peer(never_ends(), tls=tls) as peer:
        pool = pool_for(on_connection_end=ends.append)
        await pool.request("GET", peer.url)

        async def close() -> None:
            await pool.aclose(1.0)
            told.append(len(ends))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            await until(lambda: peer.connections[0].saw)
            sleep(2.5)  # noqa: ASYNC251  the program computes
        assert told == [1]
        assert ends[0].layers[-1].outcome is Outcome.TIMED_OUT


async def test_peer_that_answers_is_trusted_again() -> None:
    rude = [True, False, True]
    ends: list[ConnectionEnd] = []

    def script(connection: PeerConnection) -> None:
        (never_ends() if rude[connection.index] else answers())(connection)

    with scripted_peer(script, tls=True) as peer:
        pool = pool_for(grace=4.0, keepalive_expiry=0.01, on_connection_end=ends.append)
        for number in range(3):
            await pool.request("GET", f"{peer.url}/{number}")
            await until(lambda: len(ends) > number)  # noqa: B023
        await pool.aclose()
        assert ends[1].clean
        assert ends[2].seconds > 3.5


async def test_in_flight_short_one_arrives_whole() -> None:
    with scripted_peer(answers(delay=0.5, body=lambda _: b"x" * 1000), tls=True) as peer, watched(peer) as seen:
        pool = pool_for()
        bodies: list[bytes] = []

        async def get() -> None:
            bodies.append(await (await pool.request("GET", f"{peer.url}/")).read())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await until(lambda: peer.connections and peer.connections[0].requests)
            report = await pool.aclose()
        assert bodies == [b"x" * 1000]
        await peer.ended()
        assert peer.connections[0].saw == ["close_notify", "FIN"]
        assert_no_rst(seen, 1)
        assert report.clean
        assert report.seconds < LAG


async def test_in_flight_long_one_ends_with_a_typed_error() -> None:
    with scripted_peer(answers(delay=10.0), tls=True) as peer:
        pool = pool_for()
        errors: list[AllswellError] = []

        async def get() -> None:
            with pytest.raises(PoolClosed, match=r"was not complete within its grace of 0\.8 s") as caught:
                await pool.request("GET", f"{peer.url}/")
            errors.append(caught.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await until(lambda: peer.connections and peer.connections[0].requests)
            began = monotonic()
            report = await pool.aclose(0.8)
            assert monotonic() - began < 0.8 + LAG
        assert len(errors) == 1
        [ended] = report.connections
        assert ended.cut == 1
        assert not report.clean
        assert ended.layers[-1].said == "RST"
    assert "close_notify" not in peer.connections[0].saw


async def test_the_error_names_the_grace_that_there_was() -> None:
    """A second close shortens the grace of the first. A block that is left with an error gives none."""

    async def error(pool: ConnectionPool, close: Callable[[TaskGroup], Awaitable[None]]) -> str:
        told: list[str] = []

        async def get() -> None:
            with pytest.raises(PoolClosed) as caught:
                await pool.request("GET", f"{peer.url}/", timeouts=Timeouts(read=None))
            told.append(str(caught.value))

        with scripted_peer(answers(delay=60.0), tls=True) as peer:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(get)
                await until(lambda: peer.connections and peer.connections[0].requests)
                await close(tasks)
        [text] = told
        return text.removeprefix(f"{peer.url}: ")

    pool = pool_for()

    async def twice(tasks: TaskGroup) -> None:
        tasks.start_soon(pool.aclose, 50.0)
        await until(lambda: pool.closing)
        await pool.aclose(0)

    late = await error(pool, twice)
    assert late.startswith("the pool was closed, and the response was not complete within its grace of ")
    assert float(late.split()[-2]) < 50

    left = pool_for()

    async def leave(_: TaskGroup) -> None:
        with pytest.raises(ZeroDivisionError):
            async with left:
                raise ZeroDivisionError

    assert await error(left, leave) == "the pool was closed before the response was complete"


async def test_those_who_wait_fail_at_once() -> None:
    """The one that is answered is so when they have failed."""

    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.stall()
        connection.send(response(b""))

    with scripted_peer(script) as peer:
        pool = pool_for(max_connections=1)
        told: list[str] = []

        async def first() -> None:
            await pool.request("GET", f"{peer.url}/1")
            told.append("answered")

        async def wait() -> None:
            with pytest.raises(PoolClosed):
                await pool.request("GET", f"{peer.url}/2")
            told.append("refused")
            if len(told) == 2:
                peer.release()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await until(lambda: peer.connections and peer.connections[0].requests)
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            report = await pool.aclose()
        assert told == ["refused", "refused", "answered"]
        assert report.clean
        assert len(peer.connections[0].requests) == 1


async def test_dial_under_way_is_ended() -> None:
    """A handshake that is never answered: its requester fails at once, its socket is gone."""
    with scripted_peer(lambda connection: connection.read_until_end(), tls=True, handshake=False) as peer:
        pool = pool_for()

        async def get() -> None:
            with pytest.raises(PoolClosed):
                await pool.request("GET", f"{peer.url}/")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get)
            await anyio.to_thread.run_sync(peer.wait_accepted)
            report = await pool.aclose()
        assert report.seconds < LAG
        await anyio.to_thread.run_sync(await_client_states, peer.port, {"TIME_WAIT"})
        assert report.connections == ()


async def test_cancelled_while_closing() -> None:
    with scripted_peer(rude(3), tls=True) as peer:
        pool = pool_for(max_keepalive_connections=None)
        await several(pool, peer.url, 3)
        with anyio.move_on_after(0.2) as scope:
            await pool.aclose(5.0)
        assert scope.cancelled_caught
        assert pool.close_report is not None
        assert len(pool.close_report.connections) == 3
        assert not pool.close_report.clean
        for end in pool.close_report.connections:
            assert [layer.said for layer in end.layers] == ["", "close_notify", "FIN"]
        await peer.ended(connections=3)
        assert [connection.saw for connection in peer.connections] == [["close_notify", "FIN"]] * 3
        with pytest.raises(PoolClosed):
            await pool.request("GET", f"{peer.url}/")


async def test_left_by_exception() -> None:
    """What is idle is closed politely, what is in flight is aborted, and it does not take the grace."""
    with scripted_peer(answers(), tls=True) as idle, scripted_peer(half_response, tls=True) as busy:
        pool = pool_for()
        began = 0.0
        with pytest.raises(ZeroDivisionError):  # noqa: PT012  leaving is what is tested
            async with pool:
                await pool.request("GET", f"{idle.url}/")
                async with pool.stream("GET", f"{busy.url}/") as streamed:
                    assert await streamed.receive() == b"ten bytes."
                    began = monotonic()
                    raise ZeroDivisionError
        assert monotonic() - began < LAG
        await idle.ended()
        assert idle.connections[0].saw == ["close_notify", "FIN"]
        assert pool.close_report is not None
    assert busy.connections[0].saw == [] or busy.connections[0].saw == ["RST"]


async def test_second_close_with_less_grace_hurries_the_first() -> None:
    with scripted_peer(never_ends(), tls=True) as peer:
        pool = pool_for()
        await pool.request("GET", f"{peer.url}/")
        reports: list[CloseReport] = []

        async def close(timeout: float) -> None:
            reports.append(await pool.aclose(timeout))

        began = monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close, 3 * LAG)
            await anyio.sleep(0.1)
            tasks.start_soon(close, 0.3)
        assert monotonic() - began < LAG
        assert reports[0] is reports[1]
        await peer.ended()
        assert peer.connections[0].saw == ["close_notify", "FIN"]


async def test_close_hurries_a_background_ending() -> None:
    """An expired connection waits for its rude peer in the background; aclose(0.2) does not wait for it longer."""
    with scripted_peer(never_ends(), tls=True) as peer:
        pool = pool_for(keepalive_expiry=0.05)
        await pool.request("GET", f"{peer.url}/")
        await anyio.sleep(0.2)
        began = monotonic()
        report = await pool.aclose(0.2)
        assert monotonic() - began < LAG
        assert len(report.connections) == 1
        await peer.ended()
        assert peer.connections[0].saw == ["close_notify", "FIN"]
        assert report.connections[0].layers[-1].said == "FIN"


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("ending", [Ending.POLITE, Ending.FIN])
async def test_server_ends_an_idle_connection(tls: bool, ending: Ending) -> None:
    """Noticed at once and answered, with nobody asking: no CLOSE_WAIT."""
    ends: list[ConnectionEnd] = []

    def script(connection: PeerConnection) -> None:
        connection.answers_close_notify = ending is Ending.POLITE  # nothing can follow its FIN
        answers(1, ending=ending)(connection)

    with scripted_peer(script, tls=tls) as peer, watched(peer) as seen:
        pool = pool_for(keepalive_expiry=None, on_connection_end=ends.append)
        await pool.request("GET", f"{peer.url}/")
        await peer.ended()
        assert peer.connections[0].saw == (["close_notify", "FIN"] if tls else ["FIN"])
        await anyio.to_thread.run_sync(await_client_states, peer.port, {"TIME_WAIT"})
        assert_no_rst(seen, 1)
        await until(lambda: ends)
        assert ends[0].clean
        assert ends[0].layers[1].outcome is Outcome.PEER_FIRST
        assert ends[0].layers[-1].said == ends[0].layers[-1].heard == "FIN"
        assert await pool.aclose() == pool.close_report
        assert pool.close_report.connections == ()


async def test_server_resets_an_idle_connection() -> None:
    ends: list[ConnectionEnd] = []
    go = threading.Event()

    def script(connection: PeerConnection) -> None:
        answers(1, ending=Ending.NONE)(connection)
        if connection.index == 0:
            assert go.wait(30)
            connection.reset()

    with scripted_peer(script, tls=True) as peer:
        async with pool_for(keepalive_expiry=None, on_connection_end=ends.append) as pool:
            await pool.request("GET", f"{peer.url}/")
            go.set()
            await until(lambda: ends)
            assert await (await pool.request("GET", f"{peer.url}/b")).read() == b"/b"
        assert ends[0].layers[-1].heard == "RST"
        assert ends[0].layers[-1].outcome is Outcome.ABORTED


# An aborted transfer never sends close_notify: the peer must not take it for a complete one.


async def test_abandoned_half_read() -> None:
    with scripted_peer(huge(10_000_000), tls=True) as peer:
        async with pool_for() as pool:
            async with pool.stream("GET", f"{peer.url}/") as streamed:
                await streamed.receive()
            await peer.ended()
            assert peer.connections[0].saw == ["RST"]


async def test_cancelled() -> None:
    with scripted_peer(half_response, tls=True) as peer:
        async with pool_for() as pool:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.request, "GET", f"{peer.url}/")
                await until(lambda: peer.connections and peer.connections[0].requests)
                tasks.cancel_scope.cancel()
            peer.release()
            await peer.ended()
            assert peer.connections[0].saw == ["RST"]


async def test_timed_out() -> None:
    with scripted_peer(half_response, tls=True) as peer:
        async with pool_for() as pool:
            with pytest.raises(Timeout, match=r"sent nothing within 0\.2 s"):
                await pool.request("GET", f"{peer.url}/", timeouts=Timeouts(read=0.2))
            peer.release()
            await peer.ended()
            assert peer.connections[0].saw == ["RST"]


async def test_protocol_error() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTP/1.1 200 OK\r\n\r\n")

    with scripted_peer(script, tls=True) as peer:
        async with pool_for() as pool:
            with pytest.raises(AllswellError, match=r"broke HTTP/1\.1"):
                await pool.request("GET", f"{peer.url}/")
            await peer.ended()
            assert peer.connections[0].saw == ["RST"]


async def test_upload_cancelled() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"half"
        await anyio.sleep_forever()

    with scripted_peer(answers(), tls=True) as peer:
        async with pool_for() as pool:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(pool.request, "POST", f"{peer.url}/", content=body()))
                await until(lambda: peer.connections and peer.connections[0].received)
                tasks.cancel_scope.cancel()
            await peer.ended()
            assert peer.connections[0].saw == ["RST"]
            assert not peer.connections[0].requests[0].endswith(b"0\r\n\r\n")
