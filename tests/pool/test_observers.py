"""What observers of a pool are told: of requests, dials and connections, in which order, and that they harm nobody."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import anyio
import httpx2
import pytest

from allswell import (
    AllswellError,
    AsyncTransport,
    ConnectFailed,
    ConnectionPool,
    ProxyHop,
    RemoteProtocolError,
    Retry,
    Timeout,
    Timeouts,
    TransportError,
)
from allswell._events import (
    ConnectionEnded,
    ConnectionOpened,
    ConnectionUsed,
    DialBegan,
    DialFailed,
    Event,
    PhaseEnded,
    RequestAnswered,
    RequestBegan,
    RequestFailed,
    RequestSent,
    RequestSentBack,
    RequestWaits,
)
from allswell.testing import Origin, RequestExecuted, Response
from tests.pool.test_races import on_tcp, pool_for, request, stubborn  # noqa: F401  a fixture
from tests.support.certificates import certificates
from tests.support.dns_server import DnsServer
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import ENHANCE_YOUR_CALM, NO_ERROR, Http2Server, Request, Talk, h2_tls
from tests.support.lag import LAG
from tests.support.names import names
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.proxies import SocksProxy, connect_proxy
from tests.support.quic_server import QuicServer
from tests.support.scripts import Ending, answers

pytestmark = pytest.mark.anyio

E = TypeVar("E", bound=Event)

#: Of a version, the phases of a dial to a name with one address in each family.
PHASES = {"h1": ["tcp", "tls"], "h2": ["tcp", "tls"], "h3": ["quic"]}


class Told(list[Event]):
    """What an observer was told."""

    def of(self, kind: type[E]) -> list[E]:
        return [each for each in self if isinstance(each, kind)]

    def about(self, *, request: int) -> list[type[Event]]:
        """The kinds of what it was told of a request."""
        return [type(each) for each in self if getattr(each, "request", 0) == request and type(each) is not DialBegan]


def observed(**settings: Any) -> tuple[ConnectionPool, Told]:
    pool, told = ConnectionPool(**settings), Told()
    pool.observers.add(told.append)
    return pool, told


def observed_at(origin: Origin, **settings: Any) -> tuple[ConnectionPool, Told]:
    http3: Any = "only" if origin.versions == {"h3"} else False
    return observed(ssl_context=origin.client_context(), http3=http3, grace=3 * LAG, **settings)


def phases(told: Told) -> list[str]:
    return [each.phase for each in told.of(PhaseEnded) if each.phase != "dns"]


@pytest.mark.parametrize("version", ["h1", "h2", "h3"])
async def test_a_request_and_its_connection(version: Any) -> None:
    async with Origin(versions=[version]) as origin:
        pool, told = observed_at(origin)
        async with pool:
            for _ in range(2):
                answer = await pool.request("GET", f"{origin.url}/path?query")
        spoken = answer.http_version.decode()
        first, second = (each.request for each in told.of(RequestBegan))
        assert told.about(request=first) == [RequestBegan, RequestWaits, RequestSent, RequestAnswered]
        assert told.about(request=second) == [RequestBegan, RequestSent, RequestAnswered]
        assert told.of(RequestBegan)[0].to.label == origin.url
        assert told.of(RequestBegan)[0].head.target == b"/path?query"
        [dial] = told.of(DialBegan)
        number = dial.connection
        assert (dial.to.host, dial.to.port, dial.request) == ("localhost", origin.port, first)
        assert phases(told) == PHASES[version]
        assert {each.connection for each in told.of(PhaseEnded)} == {number}
        assert all(each.error is None and each.seconds >= 0 for each in told.of(PhaseEnded))
        [lookup] = [each for each in told.of(PhaseEnded) if each.phase == "dns"]
        assert (lookup.subject, "127.0.0.1" in lookup.found) == ("localhost", True)
        [opened] = told.of(ConnectionOpened)
        assert (opened.connection, opened.http_version, opened.peer) == (number, spoken, ("127.0.0.1", origin.port))
        assert opened.layers == {"h1": "tls > tcp", "h2": "tls > tcp", "h3": "quic > udp"}[version]
        assert opened.tls == ("" if version == "h3" else "TLSv1.3")
        assert [(each.connection, each.active) for each in told.of(ConnectionUsed)] == [
            (number, True),
            (number, False),
        ] * 2
        assert [(each.connection, each.http_version) for each in told.of(RequestSent)] == [(number, spoken)] * 2
        assert {each.peer for each in told.of(RequestSent)} == {("127.0.0.1", origin.port)}
        assert [(each.status, each.http_version) for each in told.of(RequestAnswered)] == [(200, spoken)] * 2
        [ended] = told.of(ConnectionEnded)
        assert pool.close_report is not None
        assert (ended.connection, [ended.end]) == (number, [*pool.close_report.connections])
        order = [type(each) for each in told if type(each) not in (PhaseEnded, ConnectionUsed)]
        assert order[:5] == [RequestBegan, RequestWaits, DialBegan, ConnectionOpened, RequestSent]
        assert order[-1] is ConnectionEnded


@pytest.mark.parametrize("code", [NO_ERROR, ENHANCE_YOUR_CALM])
async def test_why_a_server_left(code: int) -> None:
    """An error is told as one, and a polite goodbye is none."""

    def leave(talk: Talk, request: Request) -> None:
        talk.answer(request)
        talk.goaway(request.stream, code)

    with scripted_peer(Http2Server(leave), tls=h2_tls()) as peer:
        pool, told = observed(ssl_context=certificates().client_context(), grace=3 * LAG)
        async with pool:
            await pool.request("GET", f"https://localhost:{peer.port}")
            await peer.ended()
    [ended] = told.of(ConnectionEnded)
    if code == NO_ERROR:
        assert (ended.error, ended.end.reason) == (None, "the server is leaving")
    else:
        assert isinstance(ended.error, AllswellError)
        assert str(ended.error) == ended.end.reason


async def test_what_broke_a_connection() -> None:
    def broken(connection: PeerConnection) -> None:
        connection.read_request()
        connection.reset()

    with scripted_peer(broken) as peer:
        pool, told = observed()
        async with pool:
            with pytest.raises(TransportError):
                await pool.request("POST", peer.url)
    [ended] = told.of(ConnectionEnded)
    assert isinstance(ended.error, TransportError)


async def test_exchanges_side_by_side_are_one_use() -> None:
    async with Origin(versions=["h2"]) as origin:
        pool, told = observed_at(origin)
        async with pool:
            await pool.request("GET", origin.url)
            told.clear()
            origin.stall()
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(pool.request, "GET", origin.url)
                await origin.seen(RequestExecuted, 4, timeout=30)
                origin.behave()
            assert [each.active for each in told.of(ConnectionUsed)] == [True, False]


async def test_a_field_that_an_observer_adds_is_sent() -> None:
    seen: list[str] = []

    def add(event: Event) -> None:
        if isinstance(event, RequestBegan):
            event.head.headers.append((b"x-trace", b"7"))

    def handler(request: Any) -> Response:
        seen.append(dict(request.headers).get("x-trace", ""))
        return Response()

    async with Origin({"/": handler}) as origin, ConnectionPool(ssl_context=origin.client_context()) as pool:
        pool.observers.add(add)
        assert (await pool.request("GET", f"{origin.url}/")).status == 200
    assert seen == ["7"]


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_dial_that_fails(retries: int, closed_port: int) -> None:
    """Each try is one."""
    pool, told = observed(retries=retries)
    async with pool:
        with pytest.raises(ConnectFailed) as caught:
            await pool.request("GET", f"http://127.0.0.1:{closed_port}")
    tries = retries + 1
    assert phases(told) == ["tcp"] * tries
    assert all(isinstance(each.error, OSError) for each in told.of(PhaseEnded))
    numbers = [each.connection for each in told.of(DialBegan)]
    assert [each.connection for each in told.of(DialFailed)] == numbers
    assert len({*numbers}) == tries
    [failed] = told.of(RequestFailed)
    assert failed.error is caught.value
    assert told.about(request=failed.request) == [RequestBegan, RequestWaits, RequestFailed]
    assert not told.of(ConnectionOpened)


async def test_a_name_that_is_not_known() -> None:
    with names():
        pool, told = observed()
        async with pool:
            with pytest.raises(ConnectFailed, match="cannot resolve"):
                await pool.request("GET", "http://name.example")
    lookups = told.of(PhaseEnded)
    assert [(each.phase, each.subject, each.found) for each in lookups] == [("dns", "name.example", ())] * 2
    assert all(isinstance(each.error, OSError) for each in lookups)


async def test_a_lookup_of_https_records() -> None:
    with DnsServer() as dns, names(name_example="127.0.0.1"), scripted_peer(answers(), tls=True) as peer:
        pool, told = observed(
            http3=True, https_records=True, nameservers=[dns.address], ssl_context=certificates().client_context()
        )
        async with pool:
            await pool.request("GET", f"https://name.example:{peer.port}")
            assert dns.queries
    subjects = [each.subject for each in told.of(PhaseEnded) if each.phase == "dns"]
    assert subjects[0] == "name.example HTTPS"
    assert {*subjects[1:]} == {"name.example"}


async def test_a_dial_that_takes_too_long() -> None:
    def silent(connection: PeerConnection) -> None:
        connection.read_until_end()

    with scripted_peer(silent, handshake=False) as peer:
        pool, told = observed()
        async with pool:
            with pytest.raises(Timeout):
                await pool.request("GET", f"https://127.0.0.1:{peer.port}", timeouts=Timeouts(connect=2))
    assert [(each.phase, each.error is None) for each in told.of(PhaseEnded)] == [("tcp", True), ("tls", False)]
    assert not isinstance(told.of(PhaseEnded)[-1].error, Exception)  # it was called off
    [failed] = told.of(DialFailed)
    assert isinstance(failed.error, Timeout)


@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_a_request_that_the_server_leaves_without(version: Any) -> None:
    async with Origin(versions=[version]) as origin:
        pool, told = observed_at(origin)
        async with pool:
            await pool.request("GET", origin.url)
            told.clear()
            origin.refuse(1)
            answer = await pool.request("POST", origin.url, content=b"once")
        [attempt] = answer.attempts
        [back] = told.of(RequestSentBack)
        assert (back.why, back.processed, back.http_version) == (attempt.why, "no", attempt.http_version)
        kinds = told.about(request=back.request)
        assert [each for each in kinds if each is not RequestWaits] == [
            RequestBegan,
            RequestSent,
            RequestSentBack,
            RequestSent,
            RequestAnswered,
        ]


async def test_a_stale_connection() -> None:
    """Its server ends it when the second request comes, which goes again on another one."""
    with scripted_peer(answers(1, instead=True, ending=Ending.FIN)) as peer:
        pool, told = observed()
        async with pool:
            for _ in range(2):
                answer = await pool.request("GET", peer.url)
    [attempt] = answer.attempts
    [back] = told.of(RequestSentBack)
    assert isinstance(back.cause, RemoteProtocolError)
    assert (back.why, back.processed) == (attempt.why, "perhaps")
    assert told.about(request=back.request).count(RequestSent) == 2
    first, second = (each.connection for each in told.of(DialBegan))
    assert [each.connection for each in told.of(RequestSent)] == [first, first, second]


async def test_a_retry_is_an_attempt_of_the_same_request() -> None:
    calls = iter([Response(503), Response(200)])
    async with Origin({"/": lambda request: next(calls)}) as origin:
        told = Told()
        transport = AsyncTransport(verify=origin.client_context(), retry=Retry(backoff=0.0))
        transport.pool.observers.add(told.append)
        async with httpx2.AsyncClient(transport=transport) as client:
            assert (await client.get(f"{origin.url}/")).status_code == 200
    [began] = told.of(RequestBegan)
    [back] = told.of(RequestSentBack)
    assert (back.why, back.cause, back.processed) == ("the server answered 503", 503, "perhaps")
    assert told.about(request=began.request)[1:] == [
        RequestWaits,
        RequestSent,
        RequestSentBack,
        RequestSent,
        RequestAnswered,
    ]


@pytest.mark.parametrize("sent", [False, True])
async def test_a_request_that_is_cancelled(sent: bool) -> None:
    with scripted_peer(lambda connection: connection.read_until_end()) as peer:
        pool, told = observed(max_connections=1)
        async with pool:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.request, "GET", peer.url)
                while not told.of(RequestSent):  # noqa: ASYNC110  the observer's are no tasks
                    await anyio.sleep(0.01)
                if not sent:
                    told.clear()
                    tasks.start_soon(pool.request, "GET", peer.url)
                    while not told.of(RequestWaits):  # noqa: ASYNC110  as above
                        await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
            failed = told.of(RequestFailed)
            began = {each.request for each in told.of(RequestBegan)}
            assert began <= {each.request for each in failed}
            assert not any(isinstance(each.error, Exception) for each in failed)


@pytest.mark.parametrize("kind", ["http", "https-h2", "socks5h"])
async def test_a_tunnel_is_a_phase_and_no_request(kind: str) -> None:
    script: Any = {"http": connect_proxy(), "https-h2": Http2Proxy(), "socks5h": SocksProxy()}[kind]
    tls: Any = h2_tls() if kind == "https-h2" else False
    async with Origin(versions=["h1"]) as origin:
        with scripted_peer(script, tls=tls) as proxy:
            scheme: Any = kind.partition("-")[0]
            host = "localhost" if scheme == "https" else proxy.host
            trust = certificates().client_context() if scheme == "https" else None
            hop = ProxyHop(scheme, host, proxy.port, auth=(b"ann", b"secret") if scheme == "http" else None)
            hop = ProxyHop(scheme, host, proxy.port, ssl_context=trust) if trust is not None else hop
            pool, told = observed(ssl_context=origin.client_context(), proxies=(hop,), grace=3 * LAG)
            async with pool:
                assert (await pool.request("GET", origin.url)).status == 200
    [began] = told.of(RequestBegan)
    assert began.head.method == b"GET"
    mine = told.of(DialBegan)[0]
    assert (mine.to.host, mine.to.port, mine.request) == ("localhost", origin.port, began.request)
    [tunnel] = [each for each in told.of(PhaseEnded) if each.phase == "proxy"]
    assert (tunnel.connection, tunnel.subject, tunnel.error) == (mine.connection, str(hop), None)
    if kind == "https-h2":
        carrier = told.of(DialBegan)[1]
        assert (carrier.to.port, carrier.request) == (proxy.port, None)
        opened = {each.connection: each for each in told.of(ConnectionOpened)}
        assert opened[mine.connection].layers == "tls > tunnel"
        assert opened[carrier.connection].layers == "tls > tcp"
    assert len(told.of(ConnectionEnded)) == len(told.of(ConnectionOpened))


async def test_who_comes_second_has_a_number_of_its_own(stubborn: None) -> None:  # noqa: F811  the fixture
    told = Told()
    with QuicServer() as server, on_tcp() as tcp:
        origin = f"https://127.0.0.1:{tcp.port}"
        async with pool_for(origin, ("127.0.0.1", server.port)) as pool:
            pool.observers.add(told.append)
            assert (await request(pool, origin))[0] == b"HTTP/3"
        await tcp.ended()
    [dial] = told.of(DialBegan)
    opened = {each.http_version: each.connection for each in told.of(ConnectionOpened)}
    assert opened["HTTP/3"] == dial.connection != opened["HTTP/1.1"]
    assert {each.connection for each in told.of(ConnectionEnded)} == {*opened.values()}
    assert {each.connection for each in told.of(PhaseEnded)} == {dial.connection}


@pytest.mark.parametrize("raised", [ValueError("a bug"), SystemExit(), KeyboardInterrupt()], ids=repr)
async def test_an_observer_that_fails_harms_nobody(raised: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    told = Told()

    def broken(event: Event) -> None:
        raise raised

    with scripted_peer(answers(1, announce=True)) as peer, caplog.at_level(logging.ERROR, "allswell"):
        async with ConnectionPool() as pool:
            pool.observers.add(broken)
            pool.observers.add(told.append)
            for _ in range(2):
                assert (await pool.request("GET", peer.url)).status == 200
    assert len(told.of(ConnectionEnded)) == 2
    assert {each.getMessage() for each in caplog.records} == {"allswell: an observer failed"}
    assert len(caplog.records) == len(told)


async def test_one_that_was_removed_is_told_no_more() -> None:
    async with Origin(tls=False) as origin:
        pool, told = observed()
        async with pool:
            await pool.request("GET", origin.url)
            pool.observers.remove(told.append)
            before: Sequence[Event] = [*told]
            await pool.request("GET", origin.url)
    assert told == before


async def test_a_transport_that_opens_again_keeps_its_observers() -> None:
    told = Told()
    async with Origin(tls=False) as origin:
        transport = AsyncTransport()
        transport.pool.observers.add(told.append)
        for _ in range(2):
            async with httpx2.AsyncClient(transport=transport) as client:
                await client.get(origin.url)
    assert len(told.of(ConnectionOpened)) == len(told.of(ConnectionEnded)) == 2


async def test_one_that_another_removes_is_not_told_of_that_event() -> None:
    told = Told()
    async with Origin(tls=False) as origin:
        pool = ConnectionPool()
        pool.observers.add(lambda _: pool.observers.remove(told.append))
        pool.observers.add(told.append)
        async with pool:
            await pool.request("GET", origin.url)
    assert told == []
