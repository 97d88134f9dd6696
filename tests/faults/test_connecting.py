"""Connections that cannot be made, bad peers, timeouts: a typed error that says who and what, and the pool goes on."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest
import trio
import trustme
from hyperframe.frame import DataFrame, WindowUpdateFrame

from allswell import ConnectionPool
from allswell._config import Timeouts
from allswell._errors import AllswellError, ConnectFailed, LocalProtocolError, PoolClosed, RemoteProtocolError, Timeout
from allswell.testing import Origin, Response
from tests.support import certificates as certs
from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, Request, Talk, h2_tls
from tests.support.holes import tcp_hole
from tests.support.lag import LAG
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.quic_server import QuicServer
from tests.support.scripts import answers, half_response, response, says, silent

pytestmark = pytest.mark.anyio


def pool_for(**settings: Any) -> ConnectionPool:
    return ConnectionPool(ssl_context=certificates().client_context(), **settings)


async def fails(
    kind: type[AllswellError],
    url: str,
    match: str,
    within: float = LAG,
    timeouts: Timeouts | None = None,
    **settings: Any,
) -> AllswellError:
    """The request to this URL fails so, in time, and the pool serves others afterwards."""
    async with Origin({"/on": Response(body=b"on")}, tls=False) as good, pool_for(**settings) as pool:
        began = monotonic()
        with pytest.raises(kind, match=match) as caught:
            await pool.request("GET", url, timeouts=timeouts)
        assert monotonic() - began < within
        if "uds" not in settings:
            assert await (await pool.request("GET", f"{good.url}/on")).read() == b"on"
    return caught.value


async def test_refused(closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}/"
    error = await fails(ConnectFailed, url, rf"127\.0\.0\.1:{closed_port}.*refused")
    assert isinstance(error, ConnectFailed)
    assert error.phase == "tcp"


async def test_refused_by_name_tells_of_the_address(closed_port: int) -> None:
    await fails(ConnectFailed, f"http://localhost:{closed_port}/", r"localhost:\d+: .*127\.0\.0\.1: Connection refused")


async def test_no_such_unix_socket(tmp_path: Path) -> None:
    await fails(ConnectFailed, "http://localhost/", r"Unix socket .*nobody: No such file", uds=str(tmp_path / "nobody"))


async def test_no_way_but_a_unix_socket(tmp_path: Path) -> None:
    """Every connection goes there: HTTP/3 cannot, and so goes nowhere."""
    with QuicServer() as server:
        url = f"https://localhost:{server.port}/hello"
        await fails(ConnectFailed, url, "this request cannot use HTTP/3", uds=str(tmp_path / "nobody"), http3="only")
        assert server.all("request") == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:0/", "http://127.0.0.1:70000/"])
async def test_impossible_port(url: str) -> None:
    await fails(LocalProtocolError, url, "its port is not from 1 to 65535")


async def test_refused_socket_option() -> None:
    async with pool_for(socket_options=[(socket.SOL_SOCKET, 9999, 1)]) as pool:
        with pytest.raises(ConnectFailed, match="Protocol not available"):
            await pool.request("GET", "http://127.0.0.1:9/")


async def test_half_open() -> None:
    with tcp_hole() as port:
        error = await fails(
            Timeout, f"http://127.0.0.1:{port}/", r"no connection within 0\.3 s", timeouts=Timeouts(connect=0.3)
        )
        assert isinstance(error, Timeout)
        assert error.phase == "connect"


async def test_handshake_that_is_never_answered() -> None:
    with scripted_peer(silent, tls=True, handshake=False) as peer:
        await fails(Timeout, peer.url, "no connection within 3 s", timeouts=Timeouts(connect=3))
        await peer.ended()


async def test_total_covers_connecting() -> None:
    with tcp_hole() as port:
        error = await fails(
            Timeout, f"http://127.0.0.1:{port}/", r"within the total timeout of 0\.3 s", timeouts=Timeouts(total=0.3)
        )
        assert isinstance(error, Timeout)
        assert error.phase == "total"


# TLS


async def test_unknown_authority() -> None:
    other = certs.issue(trustme.CA(), "localhost", "127.0.0.1")
    with scripted_peer(answers(), tls=other.server_context()) as peer:
        error = await fails(
            ConnectFailed, peer.url, rf"certificate of localhost:{peer.port} is not trusted: self-signed"
        )
        assert isinstance(error, ConnectFailed)
        assert (error.phase, error.by) == ("tls", "peer")
        await peer.ended()
        assert "UNKNOWN_CA" in peer.connections[0].events[0].detail


async def test_expired() -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("localhost", not_after=datetime.now(UTC) - timedelta(days=1))
    server, client = certificates().server_context(), certificates().client_context()
    leaf.configure_cert(server)
    ca.configure_trust(client)
    with scripted_peer(answers(), tls=server) as peer:
        async with ConnectionPool(ssl_context=client) as pool:
            with pytest.raises(ConnectFailed, match=r"localhost.*has expired"):
                await pool.request("GET", peer.url)
        await peer.ended()


async def test_wrong_host_name() -> None:
    ca = trustme.CA()
    other, client = certs.issue(ca, "elsewhere.example"), certificates().client_context()
    ca.configure_trust(client)
    with scripted_peer(answers(), tls=other.server_context()) as peer:
        async with ConnectionPool(ssl_context=client) as pool:
            with pytest.raises(ConnectFailed, match=r"localhost.*mismatch"):
                await pool.request("GET", peer.url)
        await peer.ended()


async def test_plain_http_on_a_tls_port() -> None:
    def script(connection: PeerConnection) -> None:
        connection.recv()
        connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with scripted_peer(script, tls=True, handshake=False) as peer:
        await fails(ConnectFailed, peer.url, rf"TLS with localhost:{peer.port} failed: wrong version number")


async def test_garbage_in_place_of_tls() -> None:
    def script(connection: PeerConnection) -> None:
        connection.recv()
        connection.send_raw(b"\x16\x03\x03\x00\x05garbage")

    with scripted_peer(script, tls=True, handshake=False) as peer:
        await fails(ConnectFailed, peer.url, rf"TLS with localhost:{peer.port} failed")


async def test_ended_in_the_handshake() -> None:
    def script(connection: PeerConnection) -> None:
        connection.recv()
        connection.fin()

    with scripted_peer(script, tls=True, handshake=False) as peer:
        await fails(ConnectFailed, peer.url, "ended the connection during the handshake")


async def test_garbage_later() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32))

    with scripted_peer(script, tls=True) as peer:
        await fails(AllswellError, peer.url, "localhost.*broke TLS")


async def test_tls_where_plain_http_is_meant() -> None:
    with scripted_peer(answers(), tls=True) as peer:
        await fails(
            AllswellError,
            f"http://127.0.0.1:{peer.port}/",
            rf"broke HTTP|{peer.port} (ended|reset|sent nothing)",
            timeouts=Timeouts(read=0.3),
        )
        assert not peer.connections[0].requests


# HTTP


BAD = {
    "garbage": b"\x00\x01\x02\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
    "lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "absurd length": b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 50 + b"\r\n\r\n",
    "both framings": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "huge header": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
}


@pytest.mark.parametrize("wire", BAD.values(), ids=BAD.keys())
async def test_bad_response(wire: bytes) -> None:
    with scripted_peer(says(wire)) as peer:
        await fails(RemoteProtocolError, peer.url, r"broke HTTP/1\.1")


@pytest.mark.parametrize("piece", [b"HTTP/1.1 103 Early Hints\r\n\r\n", b"X: y\r\n"], ids=["1xx", "header"])
async def test_endless(piece: bytes) -> None:
    """A peer that never stops is stopped, long before a timeout."""

    def script(connection: PeerConnection) -> None:
        connection.read_request()
        if piece.startswith(b"X"):
            connection.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.send(piece * 1000)

    with scripted_peer(script) as peer:
        await fails(RemoteProtocolError, peer.url, r"informational responses|broke HTTP/1\.1", within=30)


# Timeouts


async def test_read_timeout() -> None:
    with scripted_peer(silent) as peer:
        error = await fails(
            Timeout, peer.url, rf"http://127\.0\.0\.1:{peer.port} sent nothing", timeouts=Timeouts(read=0.2)
        )
        assert isinstance(error, Timeout)
        assert error.phase == "read"


async def test_read_timeout_in_the_body() -> None:
    with scripted_peer(half_response) as peer:
        await fails(Timeout, peer.url, r"sent nothing within 0\.2 s", timeouts=Timeouts(read=0.2))


async def test_read_timeout_counts_from_the_last_bytes() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            connection.pause(0.5)
            connection.send(b"x")

    with scripted_peer(script) as peer:
        async with pool_for() as pool:
            answer = await pool.request("GET", peer.url, timeouts=Timeouts(read=3))
            assert await answer.read() == b"x" * 8


async def test_total_timeout_of_a_trickle() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            connection.pause(0.05)
            connection.send(b"x")

    with scripted_peer(script) as peer:
        error = await fails(
            Timeout,
            peer.url,
            r"did not finish within 0\.4 s",
            timeouts=Timeouts(total=0.4, read=None),
            within=0.4 + LAG,
        )
        assert isinstance(error, Timeout)
        assert error.phase == "total"


async def test_write_timeout() -> None:
    def script(connection: PeerConnection) -> None:
        connection.stall()

    with scripted_peer(script, receive_buffer=4096) as peer:
        async with pool_for() as pool:
            began = monotonic()
            with pytest.raises(Timeout, match="took nothing of the request") as caught:
                await pool.request("POST", peer.url, content=bytes(20_000_000), timeouts=Timeouts(write=0.3))
            assert caught.value.phase == "write"
            assert monotonic() - began < 0.3 + LAG


async def test_write_timeout_beside_an_upload_that_goes_on() -> None:
    """Room for others is no room for this one, though it is woken for it."""
    stuck_failed = anyio.Event()

    def serve(talk: Talk, request: Request) -> None:
        if request.path == "/stuck":
            talk.credits_at_once = False
            return
        stuck = talk.requests[request.stream - 2]
        talk.send(WindowUpdateFrame(0, window_increment=len(stuck.body)))
        while not request.ended and (frame := talk.read()) is not None:
            if isinstance(frame, DataFrame) and frame.data and not request.ended:
                streams = (0, request.stream) if frame.stream_id == request.stream else (0,)
                talk.send(*(WindowUpdateFrame(each, window_increment=len(frame.data)) for each in streams))
        assert stuck.reset is not None
        talk.answer(request)

    async def pieces() -> AsyncIterator[bytes]:
        while not stuck_failed.is_set():
            yield bytes(10_000)

    server = Http2Server(serve)
    with scripted_peer(server, tls=h2_tls()) as peer:
        async with pool_for() as pool:

            async def stuck() -> None:
                with pytest.raises(Timeout) as caught:
                    await pool.request("POST", f"{peer.url}/stuck", content=bytes(200_000), timeouts=Timeouts(write=1))
                assert caught.value.phase == "write"
                stuck_failed.set()

            with anyio.fail_after(6 * LAG):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(stuck)
                    await anyio.to_thread.run_sync(lambda: server.talk().wait_for("DATA 1", 4))
                    answer = await pool.request("POST", f"{peer.url}/going", content=pieces())
            assert answer.status == 200
        assert len(server.talks) == 1


# The pool's own life


async def test_used_after_close() -> None:
    async with Origin(tls=False) as origin:
        pool = pool_for()
        await pool.request("GET", origin.url)
        report = await pool.aclose()
        assert report.clean
        with pytest.raises(PoolClosed):
            await pool.request("GET", origin.url)
        assert await pool.aclose() is report
        assert len(origin.requests) == 1


async def test_never_used() -> None:
    report = await pool_for().aclose()
    assert (report.connections, report.clean) == ((), True)


async def test_dropped_open_warns_and_ends_its_connections() -> None:
    async with Origin(tls=False) as origin:
        pool = pool_for()
        await pool.request("GET", origin.url)
        with pytest.warns(ResourceWarning, match="unclosed <ConnectionPool, open, 1 connection>"):  # noqa: PT031
            del pool
            gc.collect()
        await origin.ended(timeout=30)


async def test_dropped_closed_does_not_warn() -> None:
    async with Origin(tls=False) as origin:
        pool = pool_for()
        await pool.request("GET", origin.url)
        await pool.aclose()
        del pool
        gc.collect()


PROGRAM = """
import anyio, sys
from allswell import ConnectionPool

async def main():
    global pool
    pool = ConnectionPool()
    print((await pool.request("GET", sys.argv[1])).status)
    if sys.argv[3] == "close":
        await pool.aclose()

anyio.run(main, backend=sys.argv[2])
"""


@pytest.mark.parametrize(("how", "warned"), [("close", False), ("leave", True)])
async def test_the_event_loop_ends_first(how: str, warned: bool, anyio_backend_name: str) -> None:
    async with Origin(tls=False) as origin:

        def run() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-W", "always", "-c", PROGRAM, origin.url, anyio_backend_name, how]
            return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

        done = await anyio.to_thread.run_sync(run)
        assert done.stdout == "200\n"
        assert done.returncode == 0
        assert ("ResourceWarning: unclosed <ConnectionPool" in done.stderr) is warned, done.stderr
        assert "Traceback" not in done.stderr
        await origin.ended(timeout=30)
        origin.assert_ended_gracefully()  # it was idle: the end of the event loop is no reason to be rude


async def test_an_address_literal_takes_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_sync(*_: object, **__: object) -> None:
        raise AssertionError("a thread is asked for")

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    before = {thread.name for thread in threading.enumerate()}
    with scripted_peer(answers(body=lambda _: response(b""))) as peer:
        async with pool_for() as pool:
            await pool.request("GET", peer.url)
            ours = {thread.name for thread in threading.enumerate()} - before
            # (In anyio's pytest plugin, a thread of trio's waits for events.)
            assert all(name.startswith(("peer", "Trio")) for name in ours), ours
