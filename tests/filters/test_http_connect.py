"""The CONNECT filter: tunnels that open, and all the ways in which a proxy may not open one."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from allswell._deadline import Deadline
from allswell._dial.lookups import resolve
from allswell._dial.sockets import connect_tcp
from allswell._errors import ConnectFailed, ProxyRefused
from allswell._filters.http_connect import BODY_SHOWN, HttpConnectFilter, basic_auth
from allswell._filters.interface import ByteStream, ReceiveBuffer
from allswell._filters.stack import Stack
from allswell._filters.tcp import TcpFilter
from allswell._messages import Headers
from allswell._report import Outcome
from tests.support.lag import PATIENCE
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.peer import PeerConnection, Script, ScriptedPeer, scripted_peer
from tests.support.scripts import Ending, says

pytestmark = pytest.mark.anyio

SECRET: Headers = [(b"Proxy-Authorization", basic_auth((b"ada", b"lovelace")))]


def stack_to(
    peer: ScriptedPeer, headers: Headers = SECRET, max_head: int = 4096
) -> tuple[Stack[HttpConnectFilter], HttpConnectFilter]:
    tcp = TcpFilter("the proxy", lambda: connect_tcp(peer.host, peer.port, ask=resolve), ReceiveBuffer())
    top = HttpConnectFilter(
        tcp, proxy="http://proxy.example:3128", target=b"origin.example:443", headers=headers, max_head=max_head
    )
    return Stack(top, tcp), top


async def read_to_end(stream: ByteStream) -> bytes:
    received = b""
    with anyio.fail_after(30):
        while True:
            while (data := stream.receive_nowait()) is None:
                await stream.wait_readable()
            if not data:
                return received
            received += data


async def failure_of(script: Script, max_head: int = 4096) -> ConnectFailed:
    with scripted_peer(script) as peer:
        stack, _ = stack_to(peer, max_head=max_head)
        with anyio.fail_after(30), pytest.raises(ConnectFailed) as caught:
            await stack.connect()
        assert [end.outcome for end in stack.abort()] == [Outcome.SKIPPED, Outcome.ABORTED]
        peer.wait_ended()
    error = caught.value
    assert error.phase == "proxy"
    assert "http://proxy.example:3128" in str(error)
    assert "lovelace" not in str(error)
    assert basic_auth((b"ada", b"lovelace")).decode() not in str(error)
    return error


@pytest.mark.parametrize("pieces", [None, 1])
@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 Connection established\r\n\r\n",
        b"HTTP/1.0 200\r\nVia: 1.1 a\r\n\r\n",
        b"HTTP/1.1 204 \r\nContent-Length: 1000000\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 Go\r\n\r\nHTTP/1.1 299 Fine\r\n\r\n",
        b"HTTP/1.1 200 OK\nServer: old\n\n",
    ],
)
async def test_what_follows_a_2xx_is_the_tunnels(head: bytes, pieces: int | None) -> None:
    with scripted_peer(says(head + b"first words", Ending.FIN, pieces=pieces)) as peer:
        stack, top = stack_to(peer)
        await stack.connect()
        assert await read_to_end(top) == b"first words"
        ends = await stack.shutdown(Deadline.after(PATIENCE))
        peer.wait_ended()
        assert peer.connections[0].saw == ["FIN"]
        assert peer.connections[0].requests == [
            b"CONNECT origin.example:443 HTTP/1.1\r\nHost: origin.example:443\r\n"
            b"Proxy-Authorization: Basic YWRhOmxvdmVsYWNl\r\n\r\n"
        ]
    assert [(end.layer, end.outcome) for end in ends] == [
        ("http-connect", Outcome.CLEAN),
        ("tcp", Outcome.PEER_FIRST),
    ]


async def test_bytes_go_both_ways() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while data := connection.recv():
            connection.send(data.upper())

    with scripted_peer(script) as peer:
        stack, top = stack_to(peer)
        await stack.connect()
        top.transmit(b"hello " * 100_000)
        received = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(top.flush)
            with anyio.fail_after(30):
                while received < 600_000:
                    while (data := top.receive_nowait()) is None:
                        await top.wait_readable()
                    assert bytes(data).isupper()
                    received += len(data)
        assert top.unsent == 0
        await stack.shutdown(Deadline.after(PATIENCE))
        peer.wait_ended()


@pytest.mark.parametrize(
    ("answer", "status", "body", "words"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 3\r\n\r\nwho",
            407,
            b"who",
            "407 Proxy Authentication Required (who)",
        ),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", 502, b"", "502 Bad Gateway"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere/\r\nContent-Length: 4\r\n\r\nmove",
            302,
            b"move",
            "302 Found",
        ),
        (
            b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsorry\r\n0\r\n\r\n",
            503,
            b"sorry",
            "503 No (sorry)",
        ),
        (b"HTTP/1.1 403 No\r\n\r\n" + b"x" * 5000, 403, b"x" * BODY_SHOWN, "403 No (xxx"),
        (b"HTTP/1.1 500 \xff\r\nContent-Length: 9\r\n\r\na\x1b[31m\r\nb", 500, b"a\x1b[31m\r\nb", "(a\ufffd[31m b)"),
    ],
)
async def test_refusals(answer: bytes, status: int, body: bytes, words: str) -> None:
    error = await failure_of(says(answer, Ending.FIN))
    assert isinstance(error, ProxyRefused)
    assert error.status == status
    assert error.body == body
    assert words in str(error)
    assert error.by == "peer"


async def test_a_refusals_body_is_not_waited_for_long() -> None:
    error = await failure_of(says(b"HTTP/1.1 502 Bad\r\nContent-Length: 100\r\n\r\nhalf"))
    assert isinstance(error, ProxyRefused)
    assert error.body == b"half"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP/1.1"),
        (b"\x05\x00", "ended the connection without an answer"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "does not speak HTTP/1.1"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "does not speak HTTP/1.1"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "does not speak HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "malformed header section"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", "malformed header section"),
        (b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n", "malformed header section"),
        (b"HTTP/1.1 200 OK\r\nA:" + b" " * 3900 + b"\x00\r\n\r\n", "malformed header section"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "switched protocols"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", "ended the connection without an answer"),
        (b"", "ended the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 5000 + b"\r\n\r\n", "exceeds 4096 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000, "exceeds 4096 bytes"),
        (b"HTTP/1.1 103 Early\r\n\r\n" * 1000, "exceeds 4096 bytes"),
    ],
)
async def test_nonsense(answer: bytes, words: str) -> None:
    error = await failure_of(says(answer, Ending.FIN))
    assert not isinstance(error, ProxyRefused)
    assert words in str(error)


async def test_an_endless_header() -> None:
    def script(connection: PeerConnection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\nA: ")
        while True:
            connection.send(b"b" * 1000)

    assert "exceeds 100000 bytes" in str(await failure_of(script, max_head=100_000))


@pytest.mark.parametrize("ending", [Ending.RST, Ending.CLOSE])
async def test_a_proxy_that_leaves(ending: Ending) -> None:
    assert (await failure_of(says(b"", ending))).by == "peer"


@pytest.mark.parametrize("header", [(b"A", b"b\r\nC: d"), (b"A b", b"c"), (b"", b"c"), (b"A", b"\x00")])
async def test_headers_that_cannot_be_sent(header: tuple[bytes, bytes]) -> None:
    with scripted_peer(says(b"")) as peer:
        stack, _ = stack_to(peer, [header])
        with pytest.raises(ConnectFailed, match="illegal") as caught:
            await stack.connect()
        assert caught.value.by == "us"
        peer.wait_ended()
        assert peer.connections[0].received == 0


@pytest.mark.parametrize("end", [Stack.abort, lambda stack: stack.abort(reset=False)])
async def test_abort(end: Callable[[Stack[HttpConnectFilter]], object]) -> None:
    with scripted_peer(says(b"HTTP/1.1 200 OK\r\n\r\n")) as peer:
        stack, top = stack_to(peer)
        await stack.connect()
        end(stack)
        end(stack)
        assert top.abort().outcome is Outcome.ABORTED
        peer.wait_ended()
