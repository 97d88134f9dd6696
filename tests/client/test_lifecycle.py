"""How clients begin and end: entered or not, several on one pool, dropped open; and what we lean on in httpx2."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import httpx
import httpx2
import pytest

import allswell
import allswell._transport
import allswell.httpx
from allswell._errors import Party, Phase, TimeoutPhase
from allswell.testing import Origin, RequestReceived, Response, Violation
from tests.support.lag import LAG
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.scripts import answers
from tests.support.transports import Wrapper

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("version", ["h1", "h2"])
async def test_without_entering(version: Any) -> None:
    async with Origin(versions=[version]) as origin:
        client = allswell.AsyncClient(verify=origin.client_context())
        assert (await client.get(origin.url)).status_code == 200
        report = await client.aclose()
        await origin.ended(timeout=30)
        origin.assert_ended_gracefully()
    assert report.clean
    assert len(report.connections) == 1
    assert await client.aclose() is report
    assert client.close_report is report
    with pytest.raises(RuntimeError, match="closed"):
        await client.get(origin.url)


async def test_entering_twice_is_refused_as_by_httpx2() -> None:
    async with allswell.AsyncClient() as client:
        with pytest.raises(RuntimeError, match="more than once"):
            await client.__aenter__()
    with pytest.raises(RuntimeError, match="reopen"):
        await client.__aenter__()


async def test_leaving_by_exception_closes_what_is_idle() -> None:
    async with Origin() as origin:
        client = allswell.AsyncClient(verify=origin.client_context())

        async def fail() -> None:
            async with client:
                await client.get(origin.url)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await origin.ended(timeout=30)
        origin.assert_ended_gracefully()
    assert client.close_report is not None


def pauses_within(connection: PeerConnection) -> None:
    """The beginning of a response, and the rest when it is let go."""
    connection.read_request()
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
    connection.stall()
    connection.send(b"cde")


async def test_two_aclose_at_once_wait_for_the_same_end() -> None:
    with scripted_peer(pauses_within) as peer:
        client = allswell.AsyncClient()
        reports: list[allswell.CloseReport] = []

        async def close() -> None:
            reports.append(await client.aclose())

        async with client.stream("GET", peer.url) as response, anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            tasks.start_soon(close)
            await anyio.wait_all_tasks_blocked()
            assert reports == []
            peer.release()
            assert await response.aread() == b"abcde"
        assert [len(report.connections) for report in reports] == [1, 1]


async def test_closing_that_is_cancelled_is_reported_all_the_same() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        connection.stall()  # and never answer the FIN

    with scripted_peer(script) as peer:
        client = allswell.AsyncClient(proxy=None, mounts={"http://elsewhere.example": allswell.AsyncTransport()})
        await client.get(peer.url)
        with anyio.move_on_after(0.1) as scope:
            await client.aclose()
        assert scope.cancelled_caught
        assert client.close_report is not None
        assert [end.route for end in client.close_report.connections] == [peer.url]
        assert not client.close_report.clean
        assert await client.aclose() is client.close_report


@pytest.mark.parametrize("how", ["leaves", "leaves in mid-response", "is cancelled", "is dropped"])
async def test_clients_that_share_a_pool(how: str) -> None:
    """One client goes in one of many ways; the other's response goes on, and the last one closes the pool."""

    asked = threading.Semaphore(0)

    def script(connection: PeerConnection) -> None:
        while connection.read_request():
            asked.release()
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
            connection.stall()
            connection.send(b"def")

    with scripted_peer(script) as peer:
        pool = allswell.ConnectionPool()
        stays, goes = allswell.AsyncClient(pool=pool), allswell.AsyncClient(pool=pool)
        async with stays.stream("GET", peer.url) as response:
            assert asked.acquire(timeout=30)
            if how == "is dropped":
                del goes
                gc.collect()
            elif how == "is cancelled":
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(goes.get, peer.url)
                    await anyio.to_thread.run_sync(asked.acquire, True, 30)
                    tasks.cancel_scope.cancel()
                assert (await goes.aclose()).connections == ()
            elif how == "leaves in mid-response":
                async with goes.stream("GET", peer.url):
                    assert (await goes.aclose()).connections == ()
            else:
                assert (await goes.aclose()).connections == ()
            assert not pool.closing
            peer.release()
            assert await response.aread() == b"abcdef"
        report = await stays.aclose()
        assert len(report.connections) == 1
        assert pool.close_report is report or pool.close_report == report
    with pytest.raises(allswell.PoolClosed):
        await pool.request("GET", peer.url)


@pytest.mark.parametrize("http", ["httpx2", "httpx", "allswell"])
async def test_clients_that_share_a_transport_one_after_another(http: str) -> None:
    """Each closes it; with the next request it begins anew, as httpx2's own does."""
    under_httpx = allswell.httpx.AsyncTransport()
    transport = allswell.AsyncTransport()

    def client() -> Any:
        if http == "httpx":
            return httpx.AsyncClient(transport=under_httpx)
        return (allswell if http == "allswell" else httpx2).AsyncClient(transport=transport)

    async with Origin({"/in": Response(body=b"in"), "/out": Response(body=b"out")}, tls=False) as origin:
        async with client() as outer:
            for count in range(1, 4):
                async with client() as inner:
                    assert (await inner.get(f"{origin.url}/in")).text == "in"
                await origin.ended(count)
            assert (await outer.get(f"{origin.url}/out")).text == "out"
        await origin.ended(4)
        assert len(origin.record.connections) == 4
        origin.assert_ended_gracefully()


async def test_a_transport_that_is_closing_takes_nothing() -> None:
    with scripted_peer(pauses_within) as peer:
        transport = allswell.AsyncTransport()
        async with (
            httpx2.AsyncClient(transport=transport) as client,
            client.stream("GET", peer.url) as response,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(transport.aclose)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(httpx2.CloseError, match="the pool is closed"):
                await client.get(peer.url)
            peer.release()
            assert await response.aread() == b"abcde"
        assert len(peer.connections) == 1


async def test_a_transport_does_not_open_anothers_pool_again() -> None:
    async with Origin(tls=False) as origin:
        async with allswell.ConnectionPool() as pool:
            transport = allswell.AsyncTransport(pool=pool)
            for _ in range(2):
                async with httpx2.AsyncClient(transport=transport) as client:
                    assert (await client.get(origin.url)).status_code == 200
            assert origin.record.connections == (1,)
        async with httpx2.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx2.CloseError, match="the pool is closed"):
                await client.get(origin.url)


async def test_dropped_open_warns() -> None:
    async with Origin(tls=False) as origin:
        clients = [allswell.AsyncClient()]
        await clients[0].get(origin.url)
        with pytest.warns(ResourceWarning, match="1 connection was left open"):
            clients.clear()
        await origin.ended(timeout=30)


async def test_dropped_unused_is_silent() -> None:
    allswell.AsyncClient()
    gc.collect()


async def test_other_transports_and_mounts() -> None:
    async def app(scope: object, receive: object, send: Callable[..., object]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[misc]  # an ASGI send
        await send({"type": "http.response.body", "body": b"asgi"})  # type: ignore[misc]

    mock = httpx2.MockTransport(lambda request: httpx2.Response(201, text="mock"))
    async with Origin({"/x": Response(body=b"real")}, tls=False) as origin:
        mounts = {"http://mock.example": mock, "all://asgi.example": httpx2.ASGITransport(app), "https://": None}
        mine = allswell.AsyncTransport()
        async with allswell.AsyncClient(mounts={**mounts, "http://127.0.0.1": mine}) as client:
            assert (await client.get("http://mock.example/")).text == "mock"
            assert (await client.get("http://asgi.example/")).text == "asgi"
            assert (await client.get(f"{origin.url}/x")).text == "real"
        assert client.close_report is not None
        assert [end.route for end in client.close_report.connections] == [origin.url]
    async with allswell.AsyncClient(transport=mock, grace=3.0) as client:
        assert (await client.get("http://anywhere.example/")).status_code == 201
    assert client.close_report == allswell.CloseReport((), 3.0, 0.0)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("leaves", ["by with", "by aclose"])
async def test_a_wrapped_transport_reports_its_end(leaves: str, elsewhere: bool) -> None:
    """As the client's transport, and as a mount: one report of all."""
    async with Origin(tls=False) as one, Origin(tls=False) as two:
        client = allswell.AsyncClient(
            transport=Wrapper(Wrapper(allswell.AsyncTransport()), elsewhere=elsewhere),
            mounts={two.url: Wrapper(allswell.AsyncTransport(), elsewhere=elsewhere)},
        )
        if leaves == "by with":
            async with client:
                assert (await client.get(one.url)).status_code == (await client.get(two.url)).status_code == 200
        else:
            assert (await client.get(one.url)).status_code == (await client.get(two.url)).status_code == 200
            await client.aclose()
        await one.ended(timeout=30)
        await two.ended(timeout=30)
        report = client.close_report
        assert report is not None
        assert {end.route for end in report.connections} == {one.url, two.url}
        assert report.clean


async def test_a_wrapped_transport_has_the_clients_time() -> None:
    """What the client is told of a response in flight is told to the pool, however deep: it is not waited for."""
    with scripted_peer(pauses_within) as peer:
        client = allswell.AsyncClient(transport=Wrapper(allswell.AsyncTransport(grace=3 * LAG)))
        async with client.stream("GET", peer.url):
            report = await client.aclose(timeout=0)
        assert [(end.route, end.cut) for end in report.connections] == [(peer.url, 1)]
        assert report.grace == 0
        assert report.seconds < LAG  # and not the pool's own grace


async def test_two_aclose_of_a_wrapped_transport_report_the_same() -> None:
    with scripted_peer(pauses_within) as peer:
        client = allswell.AsyncClient(transport=Wrapper(allswell.AsyncTransport()))
        reports: list[allswell.CloseReport] = []

        async def close() -> None:
            reports.append(await client.aclose())

        async with client.stream("GET", peer.url) as response, anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            tasks.start_soon(close)
            await anyio.wait_all_tasks_blocked()
            assert reports == []
            peer.release()
            assert await response.aread() == b"abcde"
        assert [len(report.connections) for report in reports] == [1, 1]


class Silent:
    """A script that answers requests, and the client's FIN not before it is let go.

    :ivar heard: how many clients have ended.
    """

    def __init__(self) -> None:
        self.heard = threading.Semaphore(0)

    def __call__(self, connection: PeerConnection) -> None:
        answers()(connection)
        self.heard.release()
        connection.stall()

    async def heard_both(self) -> None:
        """Wait until two clients have ended."""
        for _ in range(2):
            assert await anyio.to_thread.run_sync(self.heard.acquire, True, 3 * LAG)


def wrapped_twice(two: str) -> allswell.AsyncClient:
    """A client with two pools, one of them for this origin, both wrapped."""
    limits = httpx2.Limits(keepalive_expiry=None)
    first, second = (Wrapper(allswell.AsyncTransport(grace=20 * LAG, limits=limits)) for _ in range(2))
    return allswell.AsyncClient(transport=first, mounts={two: second})


async def test_wrapped_transports_end_side_by_side() -> None:
    """The second says its goodbye while the first waits for the answer to its own."""
    silent = Silent()
    with scripted_peer(silent) as one, scripted_peer(silent) as two:
        client = wrapped_twice(two.url)
        for peer in (one, two):
            await client.get(peer.url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.aclose)
            await silent.heard_both()
            assert client.close_report is None
            for peer in (one, two):
                peer.release()
        assert client.close_report is not None
        assert client.close_report.clean
        assert {end.route for end in client.close_report.connections} == {one.url, two.url}


async def test_wrapped_transports_whose_close_is_cancelled_all_say_goodbye() -> None:
    silent = Silent()
    with scripted_peer(silent) as one, scripted_peer(silent) as two:
        client = wrapped_twice(two.url)
        for peer in (one, two):
            await client.get(peer.url)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await client.aclose()
        assert scope.cancelled_caught
        for _ in range(2):
            assert await anyio.to_thread.run_sync(silent.heard.acquire, True, 3 * LAG)
        for peer in (one, two):
            peer.release()
            await peer.ended()
            assert peer.connections[0].saw == ["FIN"]
        assert client.close_report is not None
        assert {end.route for end in client.close_report.connections} == {one.url, two.url}


class Two(Wrapper):
    """As one that turns to another transport when the first fails; it closes one after the other."""

    def __init__(self, first: httpx2.AsyncBaseTransport, second: httpx2.AsyncBaseTransport, url: str) -> None:
        super().__init__(first)
        self._second, self._url = second, url

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        chosen = self._second if str(request.url).startswith(self._url) else self._hidden
        return await chosen.handle_async_request(request)

    async def aclose(self) -> None:
        await super().aclose()
        await self._second.aclose()


@pytest.mark.parametrize("given", [True, False], ids=["a timeout", "their own grace"])
async def test_pools_that_are_closed_one_after_the_other_have_one_grace(given: bool) -> None:
    """What the first has used up, the second has no more: it says its goodbye and does not wait."""
    grace = 0.5
    with scripted_peer(Silent()) as one, scripted_peer(pauses_within) as two:
        first, second = (allswell.AsyncTransport(grace=20 * LAG if given else grace) for _ in range(2))
        client = allswell.AsyncClient(transport=Two(first, second, two.url), grace=grace)
        await client.get(one.url)
        async with client.stream("GET", two.url):
            report = await client.aclose(grace if given else None)
        [silent, cut] = report.connections
        assert (silent.cut, cut.cut) == (0, 1)
        assert cut.began >= silent.seconds  # all are on one clock
        assert cut.began + cut.seconds <= report.seconds < 10 * LAG
        assert second.pool.close_report is not None
        assert second.pool.close_report.grace == report.grace == grace


async def test_a_second_close_hurries_what_is_wrapped() -> None:
    silent = Silent()
    with scripted_peer(silent) as one, scripted_peer(silent) as two:
        client = wrapped_twice(two.url)
        for peer in (one, two):
            await client.get(peer.url)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.aclose)
            await silent.heard_both()
            assert await client.aclose(0) is client.close_report


async def test_a_transport_that_fails_to_close_keeps_no_other_open() -> None:
    class Fails(httpx2.AsyncBaseTransport):
        async def aclose(self) -> None:
            raise ZeroDivisionError

    async with Origin(tls=False) as origin:
        kept = allswell.AsyncTransport(limits=httpx2.Limits(keepalive_expiry=None))
        client = allswell.AsyncClient(transport=Fails(), mounts={origin.url: Wrapper(kept)})
        await client.get(origin.url)
        with pytest.raises(ZeroDivisionError):
            await client.aclose()
        await origin.ended(timeout=30)
        origin.assert_ended_gracefully()
        assert client.is_closed


async def test_under_httpx() -> None:
    async with Origin({"/x": Response(body=b"taken")}, versions=["h1"]) as origin:
        transport = allswell.httpx.AsyncTransport(verify=origin.client_context())
        async with httpx.AsyncClient(transport=transport) as client:
            response = await client.post(f"{origin.url}/x", json={"a": 1})
            assert (response.text, response.http_version) == ("taken", "HTTP/1.1")
            assert response.extensions["trailers"] == []
            with pytest.raises(httpx.UnsupportedProtocol) as caught:
                await client.get("ftp://x.example")
            assert isinstance(caught.value.__cause__, allswell.UnsupportedProtocol)
            assert caught.value.request.url == "ftp://x.example"
        await origin.ended(timeout=30)
        origin.assert_ended_gracefully()
        assert [request.body for request in origin.requests] == [b'{"a":1}']


def _all_errors() -> list[tuple[allswell.AllswellError, str]]:
    us: Party = "us"
    phases: tuple[Phase, ...] = ("dns", "tcp", "tls", "quic")
    timeouts: tuple[tuple[TimeoutPhase, str], ...] = (
        ("connect", "ConnectTimeout"),
        ("read", "ReadTimeout"),
        ("write", "WriteTimeout"),
        ("pool", "PoolTimeout"),
        ("total", "TimeoutException"),
    )
    return [
        *((allswell.ConnectFailed("x", phase=phase), "ConnectError") for phase in phases),
        (allswell.ConnectFailed("x", phase="proxy"), "ProxyError"),
        *((allswell.Timeout("x", phase=phase), name) for phase, name in timeouts),
        (allswell.UnsupportedProtocol("x"), "UnsupportedProtocol"),
        (allswell.LocalProtocolError("x"), "LocalProtocolError"),
        (allswell.RemoteProtocolError("x"), "RemoteProtocolError"),
        (allswell.ExchangeReset("x", code=8, by=us), "RemoteProtocolError"),
        (allswell.TransportError("x", operation="read"), "ReadError"),
        (allswell.TransportError("x", operation="write"), "WriteError"),
        (allswell.PoolClosed("x"), "CloseError"),
        (allswell.AllswellError("x"), "TransportError"),
    ]


@pytest.mark.parametrize(("error", "name"), _all_errors(), ids=lambda value: str(value) if value != "x" else "")
@pytest.mark.parametrize("library", [httpx2, httpx])
async def test_every_error_has_its_counterpart(
    error: allswell.AllswellError, name: str, library: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send(*_: object) -> None:
        raise error

    monkeypatch.setattr(allswell.ConnectionPool, "send", send)
    module = httpx2 if library is httpx2 else httpx
    transport = allswell.AsyncTransport() if library is httpx2 else allswell.httpx.AsyncTransport()
    async with module.AsyncClient(transport=transport) as client:
        with pytest.raises(module.TransportError) as caught:
            await client.get("http://x.example/y")
    assert type(caught.value).__name__ == name
    assert caught.value.__cause__ is error
    assert caught.value.request.url == "http://x.example/y"


async def test_errors_while_reading_name_their_request() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        connection.reset()

    with scripted_peer(script) as peer:
        async with allswell.AsyncClient() as client:
            with pytest.raises(httpx2.TransportError) as caught:
                await client.get(f"{peer.url}/x")
            assert isinstance(caught.value.__cause__, allswell.AllswellError)


@pytest.mark.parametrize("headers", [{"X": "a\r\nY: b"}, {"X\n": "a"}, {"X": "a\x00"}, {"Host": "a b\r\n"}])
async def test_header_injection_is_refused(headers: dict[str, str]) -> None:
    async with Origin(tls=False) as origin, allswell.AsyncClient() as client:
        with pytest.raises(httpx2.LocalProtocolError):
            await client.get(origin.url, headers=headers)
        assert (await client.get(origin.url)).status_code == 200
        assert len(origin.record.of(RequestReceived)) == 1  # nothing came of the first
        assert origin.record.of(Violation) == []
        assert all(name not in ("x", "y") for name, _ in origin.requests[0].headers)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_beside_a_trio_that_is_too_old(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """httpcore2 imports whatever trio is installed; on asyncio it does not matter which."""
    monkeypatch.delattr("trio.lowlevel.in_trio_run")
    monkeypatch.delattr("trio.lowlevel.in_trio_task")
    async with Origin({"/here": Response(body=b"here")}, tls=False) as origin, allswell.AsyncClient() as client:
        assert (await client.get(f"{origin.url}/here")).text == "here"
