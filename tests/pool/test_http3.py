"""HTTP/3 in the pool: servers that leave, refuse, restart; what is replayed; and which of QUIC and TCP serves whom."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest
import trustme
from interop.ports import free_port

from allswell import ConnectionPool, QuicConfig
from allswell._config import Timeouts
from allswell._errors import ConnectFailed, ExchangeReset, TransportError
from allswell._report import ConnectionEnd
from allswell._request.response import Response
from allswell.testing import Origin
from tests.support.certificates import Certificates, certificates, issue
from tests.support.holes import UdpHole
from tests.support.lag import LAG, PATIENCE, room_is_awaited, silent_after, stagger
from tests.support.leaks import sockets_closed
from tests.support.learnt import time_stands_still
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers
from tests.support.udp_relay import UdpRelay

pytestmark = pytest.mark.anyio

SOON = Timeouts(connect=30, read=30, write=30, pool=30, total=30)
NO_ERROR, REQUEST_REJECTED, REQUEST_CANCELLED = 0x100, 0x10B, 0x10C
#: RFC 9114 §5.2: the largest number of a request stream, to warn with.
NEVER = 2**62 - 4


def trusting(http3: Any = "only", **settings: Any) -> ConnectionPool:
    """A pool that trusts the peers of these tests."""
    context = settings.pop("context", None) or certificates().client_context()
    return ConnectionPool(http3=http3, ssl_context=context, **settings)


def url(server: QuicServer, path: str = "/hello", host: str = "127.0.0.1") -> str:
    return f"https://{host}:{server.port}{path}"


Requests = list[tuple[int, bytes]]


class Leaver:
    """A handler: the first connection collects so many requests, then does ``leave`` with them; others answer."""

    def __init__(self, count: int, leave: Any) -> None:
        self._count = count
        self._leave = leave
        self._first: ServedConnection | None = None
        self._collected: Requests = []

    def __call__(self, connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        self._first = self._first or connection
        path = fields[b":path"]
        if connection is not self._first:
            connection.respond(stream, 200, path)
            return
        self._collected.append((stream, path))
        if len(self._collected) == self._count:
            self._leave(connection, sorted(self._collected))


def answer(connection: ServedConnection, requests: Requests) -> None:
    for stream, path in requests:
        connection.respond(stream, 200, path)


def goaway_within(connection: ServedConnection, requests: Requests) -> None:
    """Three are below its id and finish here, three go elsewhere."""
    connection.goaway(requests[3][0])
    answer(connection, requests[:3])


def goaway_above(connection: ServedConnection, requests: Requests) -> None:
    connection.goaway(requests[-1][0] + 400)
    answer(connection, requests)


def goaway_zero(connection: ServedConnection, requests: Requests) -> None:
    connection.goaway(0)


def goaway_warned(connection: ServedConnection, requests: Requests) -> None:
    """The warning first, then the real one."""
    connection.goaway(NEVER)
    answer(connection, requests[:2])
    connection.goaway(requests[2][0])


def goaway_and_close(connection: ServedConnection, requests: Requests) -> None:
    connection.goaway(requests[0][0])
    connection.flush()
    connection.quic.close(error_code=NO_ERROR)


def reject_all(connection: ServedConnection, requests: Requests) -> None:
    for stream, _ in requests:
        connection.quic.reset_stream(stream, REQUEST_REJECTED)
    connection.goaway(requests[-1][0] + 4)


def reject_some(connection: ServedConnection, requests: Requests) -> None:
    answer(connection, requests[::2])
    for stream, _ in requests[1::2]:
        connection.quic.reset_stream(stream, REQUEST_REJECTED)
    connection.goaway(requests[-1][0] + 4)


def stop_and_reject(connection: ServedConnection, requests: Requests) -> None:
    """Both halves refused: STOP_SENDING first."""
    for stream, _ in requests:
        connection.quic.stop_stream(stream, REQUEST_REJECTED)
        connection.quic.reset_stream(stream, REQUEST_REJECTED)
    connection.goaway(requests[-1][0] + 4)


LEAVES = [
    goaway_within,
    goaway_above,
    goaway_zero,
    goaway_warned,
    goaway_and_close,
    reject_all,
    reject_some,
    stop_and_reject,
]


@pytest.mark.parametrize("leave", LEAVES, ids=lambda leave: leave.__name__)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_server_that_leaves_costs_no_request(leave: Any, method: str) -> None:
    responses: dict[str, Response] = {}
    paths = [f"/leave/{number}" for number in range(6)]
    with QuicServer({b"/leave": Leaver(6, leave)}) as server:
        async with trusting() as pool:
            await pool.request("GET", url(server))  # so that all six go on one connection

            async def get(path: str) -> None:
                content = b"body" if method == "POST" else None
                responses[path] = await pool.request(method, url(server, path), content=content, timeouts=SOON)

            async with anyio.create_task_group() as tasks:
                for path in paths:
                    tasks.start_soon(get, path)
            for path in paths:
                assert await responses[path].read() == path.encode()
                assert {attempt.processed for attempt in responses[path].attempts} <= {"no"}
            replayed = sum(bool(response.attempts) for response in responses.values())
            expected = {"goaway_within": 3, "goaway_above": 0, "goaway_warned": 4, "reject_some": 3}
            assert replayed == expected.get(leave.__name__, 6)


async def test_the_new_connection_does_not_wait_for_the_old_one() -> None:
    def slow(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.head(stream, 200)
        connection.data(stream, b"half")
        connection.goaway(stream + 4)

    with QuicServer({b"/slow": slow}) as server:
        async with trusting() as pool, pool.stream("GET", url(server, "/slow")) as response:
            assert await response.receive() == b"half"
            old = server.connections[-1]
            with anyio.fail_after(30):
                while len(server.connections) < 2:
                    assert (await pool.request("GET", url(server))).attempts == []
            server.call(lambda _: old.data(0, b", whole", end=True))
            assert await response.read() == b", whole"


async def test_the_end_in_place_of_an_answer() -> None:
    """What may have been processed goes again only where that does no harm; the ledger says "perhaps"."""
    closed: list[ServedConnection] = []

    def close(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        if not closed:
            closed.append(connection)
            connection.quic.close(error_code=NO_ERROR)
        else:
            connection.respond(stream, 200, b"again")

    with QuicServer({b"/close": close}) as server:
        async with trusting() as pool:
            response = await pool.request("GET", url(server, "/close"), timeouts=SOON)
            assert [attempt.processed for attempt in response.attempts] == ["perhaps"]
            closed.clear()
            with pytest.raises(TransportError, match="closed the connection"):
                await pool.request("POST", url(server, "/close"), content=b"once", timeouts=SOON)
            assert [method for method, path in server.all("request") if path == "/close"] == ["GET", "GET", "POST"]


async def test_a_server_that_only_rejects_is_asked_a_few_times() -> None:
    """Whatever the timeouts."""
    forever = Timeouts(None, None, None, None)
    with QuicServer(
        {b"/no": lambda connection, stream, _: connection.quic.reset_stream(stream, REQUEST_REJECTED)}
    ) as server:
        async with trusting() as pool:
            with pytest.raises(ExchangeReset):
                await pool.request("POST", url(server, "/no"), content=b"x", timeouts=forever)
        assert len(server.all("request")) == 5
        assert len(server.connections) == 1


async def test_other_resets_are_the_users() -> None:
    def reset(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.quic.reset_stream(stream, 0x102)

    with QuicServer({b"/reset": reset}) as server:
        async with trusting() as pool:
            with pytest.raises(ExchangeReset) as caught:
                await pool.request("GET", url(server, "/reset"), timeouts=SOON)
            assert caught.value.code == 0x102
            assert (await pool.request("GET", url(server))).status == 200
            assert len(server.connections) == 1


async def test_a_server_that_restarts_under_fifty_workers() -> None:
    """Each connection serves a hundred requests, says GOAWAY, finishes what is below it, and closes."""
    served: dict[ServedConnection, int] = {}

    def work(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        count = served[connection] = served.get(connection, 0) + 1
        if count < 100:
            connection.respond(stream, 200, fields[b":path"])
        elif count == 100:
            connection.goaway(stream + 4)
            connection.respond(stream, 200, fields[b":path"])
        elif stream < 400:
            connection.respond(stream, 200, fields[b":path"])

    done = 0
    with QuicServer({b"/worker": work}) as server:
        async with trusting() as pool:

            async def worker(number: int) -> None:
                nonlocal done
                for turn in range(20):
                    path = f"/worker/{number}/{turn}"
                    response = await pool.request("POST", url(server, path), content=b"x", timeouts=SOON)
                    assert await response.read() == path.encode()
                    assert {attempt.processed for attempt in response.attempts} <= {"no"}
                    done += 1

            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(worker, number)
        assert done == 1000
        assert len(server.connections) >= 9


async def test_more_requests_than_streams() -> None:
    """The server allows 128 streams at first, and more as these end."""
    with QuicServer() as server:
        async with trusting() as pool:
            async with anyio.create_task_group() as tasks:
                for _ in range(300):
                    tasks.start_soon(pool.request, "GET", url(server))
            assert len(server.all("request")) == 300
            assert len(server.connections) <= 3


async def test_after_the_idle_timeout_the_next_request_succeeds_at_once() -> None:
    """Three seconds stand for the thirty of the default and for minutes: both sides forget without a word."""
    ends: list[ConnectionEnd] = []
    with QuicServer() as server:
        async with trusting(
            keepalive_expiry=None, quic=QuicConfig(idle_timeout=3.0), on_connection_end=ends.append
        ) as pool:
            await pool.request("GET", url(server))
            with anyio.fail_after(30):
                while not ends:  # noqa: ASYNC110  the hook's doing
                    await anyio.sleep(0.01)
            response = await pool.request("POST", url(server, "/echo"), content=b"not idempotent", timeouts=SOON)
            assert await response.read() == b"14"
            assert response.attempts == []
            assert len(server.connections) == 2
            assert len(ends) == 1
        assert len(server.all("close")) == 1


async def test_where_only_the_server_has_forgotten() -> None:
    """Its idle timeout is shorter: both use the shorter one (RFC 9000 §10.1)."""
    with QuicServer(idle_timeout=3.0) as server:
        async with trusting(keepalive_expiry=None) as pool:
            await pool.request("GET", url(server))
            await anyio.sleep(3.5)
            assert (await pool.request("GET", url(server), timeouts=SOON)).attempts == []


async def test_keepalive_keeps_it() -> None:
    with QuicServer() as server:
        quic = QuicConfig(idle_timeout=3.0, keepalive=0.2)
        async with trusting(keepalive_expiry=None, quic=quic) as pool:
            await pool.request("GET", url(server))
            await anyio.sleep(3.5)
            await pool.request("GET", url(server))
            assert len(server.connections) == 1


# Tickets and early data


async def _end(pool: ConnectionPool, server: QuicServer) -> None:
    """End the connection, so that the next request has another one."""
    await pool.drain()
    with anyio.fail_after(30):
        while not server.all("close"):  # noqa: ASYNC110  the server's doing
            await anyio.sleep(0.01)


async def test_resumption_and_early_data() -> None:
    """The second connection is resumed; a safe request goes with its first flight, others wait for the handshake."""
    with QuicServer() as server:
        async with trusting(quic=QuicConfig(early_data=True)) as pool:
            for expected in ((False, False), (True, True), (True, True)):
                ended = len(server.all("close"))
                assert (await pool.request("GET", url(server), timeouts=SOON)).status == 200
                assert (await pool.request("POST", url(server, "/echo"), content=b"1", timeouts=SOON)).status == 200
                assert server.all("handshake")[-1] == expected
                await pool.drain()
                with anyio.fail_after(30):
                    while len(server.all("close")) == ended:  # noqa: ASYNC110  the server's doing
                        await anyio.sleep(0.01)


async def test_post_is_never_early_data() -> None:
    with QuicServer() as server:
        async with trusting(quic=QuicConfig(early_data=True)) as pool:
            await pool.request("GET", url(server))
            await _end(pool, server)
            server.seen.clear()
            await pool.request("POST", url(server, "/echo"), content=b"1", timeouts=SOON)
            words = [entry[0] for entry in server.seen]
            assert words.index("handshake") < words.index("request")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_early_data_that_is_rejected_costs_nothing(method: str) -> None:
    with QuicServer() as server:
        async with trusting(quic=QuicConfig(early_data=True)) as pool:
            await pool.request("GET", url(server))
            await _end(pool, server)
            server.tickets.clear()
            content = b"12" if method == "POST" else None
            path = "/echo" if method == "POST" else "/hello"
            response = await pool.request(method, url(server, path), content=content, timeouts=SOON)
            assert await response.read() == (b"2" if method == "POST" else b"hello")
            assert server.all("handshake") == [(False, False), (False, False)]
            assert len(server.all("request")) == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_early_data_that_is_answered_with_retry_costs_nothing(method: str) -> None:
    with QuicServer(retry=True) as server:
        async with trusting(quic=QuicConfig(early_data=True)) as pool:
            await pool.request("GET", url(server))
            await _end(pool, server)
            content = b"12" if method == "POST" else None
            path = "/echo" if method == "POST" else "/hello"
            response = await pool.request(method, url(server, path), content=content, timeouts=SOON)
            assert await response.read() == (b"2" if method == "POST" else b"hello")
            assert (response.attempts, len(server.all("request"))) == ([], 2)
            assert len(server.connections) == 2


async def test_too_early_goes_again() -> None:
    """RFC 8470 §5.2: 425 to early data is replayed, and once more when it was none."""

    def early(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        resumed = connection.quic.tls.session_resumed
        connection.respond(stream, 425 if resumed and stream == 0 else 200, b"ok")

    with QuicServer({b"/early": early}) as server:
        async with trusting(quic=QuicConfig(early_data=True)) as pool:
            await pool.request("GET", url(server))
            await _end(pool, server)
            response = await pool.request("GET", url(server, "/early"), timeouts=SOON)
            assert (response.status, len(response.attempts)) == (200, 1)
            assert response.attempts[0].processed == "no"


async def test_early_data_without_an_answer_leads_to_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """0-RTT wins the race with TCP before anything is known; where UDP goes nowhere any more, that was too soon."""
    time_stands_still(monkeypatch)
    quic = QuicConfig(early_data=True)
    tls = certificates().server_context()
    with (
        scripted_peer(answers(), tls=tls) as peer,
        QuicServer() as server,
        UdpRelay(server.port, port=peer.port) as relay,
    ):
        origin = f"https://127.0.0.1:{relay.port}"
        async with trusting(True, http3_origins=frozenset({origin}), quic=quic) as pool:
            assert (await pool.request("GET", f"{origin}/hello")).http_version == b"HTTP/3"
            await _end(pool, server)
            relay.black_out(PATIENCE)
            silent_after(monkeypatch)
            stagger(monkeypatch)
            for method in ("GET", "DELETE"):
                response = await pool.request(method, f"{origin}/hello", timeouts=SOON)
                assert response.http_version == b"HTTP/1.1"
                why = [attempt.why for attempt in response.attempts]
                assert why == [f"no answer to early data from 127.0.0.1:{relay.port}"] * (method == "GET")


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_early_data_without_an_answer_goes_again_after_a_handshake(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with QuicServer() as server, UdpRelay(server.port) as relay:
        async with trusting(quic=QuicConfig(early_data=True)) as pool:
            address = f"https://127.0.0.1:{relay.port}"
            await pool.request("GET", f"{address}/hello")
            await _end(pool, server)
            server.seen.clear()
            relay.black_out(PATIENCE)
            silent_after(monkeypatch)
            before = relay.clients
            content = b"12" if method == "POST" else None
            async with anyio.create_task_group() as tasks:

                async def lift() -> None:
                    """Once another connection is tried."""
                    while relay.clients < before + 2:  # noqa: ASYNC110  the relay lives in another thread
                        await anyio.sleep(0.01)
                    silent_after(monkeypatch, 10)  # as patient as all else
                    relay.black_out(0)

                tasks.start_soon(lift)
                response = await pool.request(method, f"{address}/echo", content=content, timeouts=SOON)
            assert response.status == 200
            processed = "perhaps" if method == "GET" else "no"
            assert [attempt.processed for attempt in response.attempts] == [processed]
            await response.aclose()
            assert [early for _, early in server.all("handshake")] == [False]
            await _end(pool, server)
            await pool.request("GET", f"{address}/hello", timeouts=SOON)
            with anyio.fail_after(30):
                while len(server.all("handshake")) < 2:  # noqa: ASYNC110  it may be later than the response
                    await anyio.sleep(0.01)
            assert server.all("handshake")[-1] == (True, True)  # trusted again


# Certificates: the same errors as on TCP


def _expired() -> Certificates:
    ca = trustme.CA()
    files = issue(ca, "localhost", "127.0.0.1")
    old = ca.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC))
    files.chain.unlink()
    for blob in old.cert_chain_pems:
        blob.write_to_path(files.chain, append=True)
    old.private_key_pem.write_to_path(files.key)
    return files


async def test_certificates_that_are_refused() -> None:
    expired = _expired()
    revoking = certificates().client_context()
    revoking.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF  # and it has no list
    cases = [
        (certificates(), issue(trustme.CA(), "127.0.0.1").client_context(), "127.0.0.1.*certificate"),
        (wrong := issue(trustme.CA(), "other.example"), wrong.client_context(), "127.0.0.1.*(not|mismatch).*127.0.0.1"),
        (expired, expired.client_context(), "127.0.0.1.*expired"),
        (certificates(), revoking, "127.0.0.1.*CRL"),
    ]
    for files, context, words in cases:
        with QuicServer(files=files) as server, scripted_peer(answers(), tls=files.server_context()) as tcp:
            async with trusting(context=context) as pool:
                with pytest.raises(ConnectFailed, match=words) as caught:
                    await pool.request("GET", url(server), timeouts=SOON)
            async with trusting(False, context=context) as pool:
                with pytest.raises(ConnectFailed, match=words) as on_tcp:
                    await pool.request("GET", f"https://127.0.0.1:{tcp.port}/", timeouts=SOON)
            assert caught.value.phase == on_tcp.value.phase == "tls"
            assert server.all("request") == []


async def test_a_context_that_trusts_nobody_trusts_nobody() -> None:
    """Not even those whom the system trusts (here: our CA, by SSL_CERT_FILE)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with QuicServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificates().ca))
        async with trusting(context=context) as pool:
            with pytest.raises(ConnectFailed, match="certificate"):
                await pool.request("GET", url(server), timeouts=SOON)
        assert server.all("request") == []


def _hash(pem: bytes) -> str:
    """What OpenSSL calls a CA's file in a folder: as ``openssl x509 -hash`` says."""
    command = ["openssl", "x509", "-noout", "-hash"]
    return subprocess.run(command, input=pem, check=True, capture_output=True).stdout.decode().strip()


async def test_trust_that_is_a_folder(tmp_path: Path) -> None:
    """``capath``: OpenSSL looks there when it meets an issuer, and shows nothing before."""
    ca = certificates().ca.read_bytes()
    (tmp_path / f"{_hash(ca)}.0").write_bytes(ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(capath=str(tmp_path))
    assert context.get_ca_certs() == []
    with QuicServer() as server:
        async with trusting(context=context) as pool:
            assert (await pool.request("GET", url(server), timeouts=SOON)).status == 200


async def test_a_context_that_checks_nothing() -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with QuicServer(files=issue(trustme.CA(), "other.example")) as server:
        async with trusting(context=context) as pool:
            assert (await pool.request("GET", url(server), timeouts=SOON)).status == 200


async def test_client_certificate() -> None:
    files = certificates()
    with QuicServer(ask_client=True) as server:
        async with trusting(quic=QuicConfig(certfile=str(files.client))) as pool:
            await pool.request("GET", url(server), timeouts=SOON)
        [(certificate,)] = server.all("certificate")
        assert "client@allswell.example" in str(certificate.extensions)


# QUIC and TCP


@contextmanager
def black_hole() -> Iterator[tuple[Origin, UdpHole]]:
    """A server on TCP; at the same UDP port nobody answers: what a firewall makes of QUIC."""
    for _ in range(20):
        with Origin(versions=["h1"]) as tcp:
            try:
                hole = UdpHole(tcp.port)
            except OSError:
                continue  # somebody has it for UDP
            with hole:
                yield tcp, hole
            return
    raise AssertionError("no port is free for both")


async def test_a_black_hole_is_left_for_tcp_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    stagger(monkeypatch)
    time_stands_still(monkeypatch)
    with black_hole() as (tcp, hole), sockets_closed():
        origin, context = f"https://127.0.0.1:{tcp.port}", tcp.client_context()
        async with trusting(True, context=context, http3_origins=frozenset({origin}), keepalive_expiry=0.05) as pool:
            began = monotonic()
            assert (await pool.request("GET", origin, timeouts=SOON)).http_version == b"HTTP/1.1"
            assert monotonic() - began > 0.2  # the stagger
            assert hole.swallowed()
            await tcp.ended()
            for number in (2, 3):
                assert (await pool.request("GET", origin, timeouts=SOON)).http_version == b"HTTP/1.1"
                assert hole.swallowed() == []
                await tcp.ended(connections=number)


async def test_a_closed_udp_port_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stagger(monkeypatch, 3 * LAG)
    async with Origin(versions=["h1"]) as tcp:
        origin = f"https://127.0.0.1:{tcp.port}"
        async with trusting(True, context=tcp.client_context(), http3_origins=frozenset({origin})) as pool:
            began = monotonic()
            assert (await pool.request("GET", origin, timeouts=SOON)).http_version == b"HTTP/1.1"
            assert monotonic() - began < LAG  # ICMP says so at once


async def test_quic_where_tcp_is_refused() -> None:
    with QuicServer() as server, sockets_closed():
        origin = f"https://127.0.0.1:{server.port}"
        async with trusting(True, http3_origins=frozenset({origin})) as pool:
            assert (await pool.request("GET", url(server), timeouts=SOON)).http_version == b"HTTP/3"


async def test_without_an_offer_tcp_alone_is_asked() -> None:
    with QuicServer() as server:
        async with trusting(True) as pool:
            with pytest.raises(ConnectFailed) as caught:
                await pool.request("GET", url(server), timeouts=SOON)
            assert caught.value.phase == "tcp"
        assert server.seen == []


async def test_alt_svc_is_followed_and_cleared() -> None:
    """Learnt from a response over TCP: the next connection is QUIC's, to the port that it named."""
    with QuicServer() as server:
        offer = f'Alt-Svc: h3=":{server.port}"; ma=60'
        with scripted_peer(answers(1, fields=(offer,), announce=True), tls=certificates().server_context()) as tcp:
            async with trusting(True) as pool:
                origin = f"https://127.0.0.1:{tcp.port}"
                assert (await pool.request("GET", origin, timeouts=SOON)).http_version == b"HTTP/1.1"
                await tcp.ended()
                response = await pool.request("GET", f"{origin}/hello", timeouts=SOON)
                assert (response.http_version, await response.read()) == (b"HTTP/3", b"hello")


@pytest.mark.parametrize("known", [False, True], ids=["Alt-Svc", "prior knowledge"])
@pytest.mark.parametrize("own", [None, b"own.example"])
async def test_requests_name_the_alternative_that_they_go_to(known: bool, own: bytes | None) -> None:
    """RFC 7838 §5: Alt-Used. Where the origin itself is known to speak HTTP/3 there is none."""
    came: list[dict[bytes, bytes]] = []

    def look(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        came.append(fields)
        connection.respond(stream, 200)

    with QuicServer({b"/look": look}, port=free_port()) as server:
        offer = f'Alt-Svc: h3="localhost:{server.port}"; ma=60'
        script = answers(1, fields=(offer,), announce=True)
        # Where it is known to speak HTTP/3, the origin is there on UDP: at the same port.
        with scripted_peer(script, tls=certificates().server_context(), port=server.port if known else 0) as tcp:
            origin = f"https://127.0.0.1:{tcp.port}"
            async with trusting(True, http3_origins=frozenset({origin} if known else ())) as pool:
                if not known:
                    await pool.request("GET", origin, timeouts=SOON)
                    await tcp.ended()
                headers = [] if own is None else [(b"Alt-Used", own)]
                for _ in range(2):
                    response = await pool.request("GET", f"{origin}/look", headers=headers, timeouts=SOON)
                    assert response.http_version == b"HTTP/3"
    used = own if own is not None or known else b"localhost:%d" % server.port
    assert [fields.get(b"alt-used") for fields in came] == [used, used]


async def test_only_http3_does_not_go_elsewhere() -> None:
    async with Origin(versions=["h1"]) as tcp:
        async with trusting() as pool:
            with pytest.raises(ConnectFailed, match=f"127.0.0.1:{tcp.port}.*unreachable"):
                await pool.request("GET", f"https://127.0.0.1:{tcp.port}/", timeouts=SOON)
            with pytest.raises(ConnectFailed, match="HTTP/3 only"):
                await pool.request("GET", "http://127.0.0.1:1/", timeouts=SOON)
        assert tcp.record.connections == ()


async def test_a_dial_that_is_given_up_leaves_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hole, sockets_closed():
        hole.bind(("127.0.0.1", 0))
        port = hole.getsockname()[1]
        async with trusting() as pool:
            with anyio.move_on_after(0.2) as scope:
                await pool.request("GET", f"https://127.0.0.1:{port}/")
            assert scope.cancelled_caught
            report = await pool.aclose(0.5)
        assert report.seconds < 0.5 + LAG


# Room that comes back


class _Stingy(QuicServer):
    """Allows each connection so many streams, ever."""

    def _accept(self, header: Any, address: Any) -> ServedConnection | None:
        connection = super()._accept(header, address)
        if connection is not None:
            limit = connection.quic._local_max_streams_bidi
            limit.value, limit.sent = 6, 6
            connection.quic._write_connection_limits = lambda *_, **__: None  # type: ignore[method-assign]
        return connection


async def test_streams_that_are_never_granted_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """While some of what was allowed is in use, more may be granted in a moment; it is not, so another one is made."""
    room_is_awaited(monkeypatch)
    held: list[tuple[ServedConnection, int]] = []
    with _Stingy({b"/hold": lambda connection, stream, _: held.append((connection, stream))}) as server:
        async with trusting() as pool:
            for _ in range(5):
                await pool.request("GET", url(server), timeouts=SOON)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.request, "GET", url(server, "/hold"))
                with anyio.fail_after(30):
                    while not held:  # noqa: ASYNC110  the server's doing
                        await anyio.sleep(0.001)
                began = monotonic()
                assert (await pool.request("GET", url(server), timeouts=SOON)).attempts == []
                assert monotonic() - began > 0.2
                connection, stream = held[0]
                server.call(lambda _: connection.respond(stream, 200, b"held"))
            assert len(server.connections) == 2
