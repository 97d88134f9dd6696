"""CONNECT-UDP: datagrams as capsules, however they are cut; what is no datagram; requests over HTTP/3 inside HTTP/2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from allswell import CloseReport, ConnectFailed, ConnectionPool, ProxyHop
from allswell._dial.lookups import resolve
from allswell._dial.sockets import connect_tcp
from allswell._errors import TransportError
from allswell._filters.connect_udp import ConnectUdpFilter
from allswell._filters.interface import ReceiveBuffer, Run
from allswell._filters.stack import Stack
from allswell._filters.tcp import TcpFilter
from tests.servers.caddy import caddy
from tests.support.certificates import certificates
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import Request, Talk, h2_tls
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.proxies import connect_proxy
from tests.support.servers import HELLO, TEN_MB

pytestmark = pytest.mark.anyio

UNKNOWN = b"\x7f\xff\x40\x05abcde"
OTHER_CONTEXT = b"\x00\x03\x02ab"
EMPTY = b"\x00\x00"


async def heard(data: bytes, pieces: int | None, count: int) -> list[bytes]:
    def script(connection: PeerConnection) -> None:
        connection.send(data, pieces=pieces)
        connection.fin()

    with scripted_peer(script) as peer:
        tcp = TcpFilter("the proxy", lambda: connect_tcp(peer.host, peer.port, ask=resolve), ReceiveBuffer())
        top = ConnectUdpFilter(tcp, proxy="https://proxy.example:443", host="origin.example", port=443)
        tunnel = Stack(tcp)
        await tunnel.connect()
        stack = await tunnel.push(top)
        datagrams: list[bytes] = []
        try:
            with anyio.fail_after(30):
                while len(datagrams) < count:
                    if (batch := top.receive_nowait()) is None:
                        await top.wait_readable()
                    else:
                        datagrams += [each for run in batch for each in run.datagrams()]
        finally:
            stack.abort()
            peer.wait_ended()
        return datagrams


@pytest.mark.parametrize("pieces", [None, 1, 2, 5])
async def test_datagrams_however_they_are_cut(pieces: int | None) -> None:
    large = bytes(20_000)
    capsules = b"".join(
        [
            b"\x00\x04\x00one",
            UNKNOWN,
            b"\x00\x40\x04\x00two",
            OTHER_CONTEXT,
            b"\x40\x00\x01\x00",
            EMPTY,
            b"\x00\xc0\x00\x00\x00\x00\x00\x4e\x23\x40\x00" + large + b"!",
        ]
    )
    if pieces == 1:
        capsules = capsules[:-20_012] + b"\x00\x02\x00!"
    datagrams = await heard(capsules, pieces, 4)
    assert datagrams == [b"one", b"two", b"", b"!" if pieces == 1 else large + b"!"]


async def test_what_is_here_is_not_waited_for() -> None:
    """A proxy's burst would stand still until the proxy says something else."""

    def script(connection: PeerConnection) -> None:
        connection.send(UNKNOWN * 300 + b"\x00\x02\x00x" * 600)
        connection.read_until_end()

    with scripted_peer(script) as peer:
        tcp = TcpFilter("the proxy", lambda: connect_tcp(peer.host, peer.port, ask=resolve), ReceiveBuffer())
        top = ConnectUdpFilter(tcp, proxy="https://proxy.example:443", host="origin.example", port=443)
        tunnel = Stack(tcp)
        await tunnel.connect()
        stack = await tunnel.push(top)
        count = 0
        with anyio.fail_after(30):
            while count < 600:
                await top.wait_readable()
                count += len(top.receive_nowait() or ())
        stack.abort()
        peer.wait_ended()


async def test_a_long_unknown_capsule_is_not_kept() -> None:
    size = 3_000_000
    capsule = b"\x11" + (0x80000000 | size).to_bytes(4, "big") + bytes(size)
    assert await heard(capsule + b"\x00\x03\x00hi", None, 1) == [b"hi"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x00\x80\x01\x00\x08\x00", "sent a datagram of 65544 bytes"),
        (b"\x00\xff\xff\xff\xff\xff\xff\xff\xff", "sent a datagram of 4611686018427387903 bytes"),
        (b"", "ended the relay"),
        (b"\x00\x05\x00a", "ended the relay"),
    ],
)
async def test_what_breaks_it(data: bytes, words: str) -> None:
    with pytest.raises(TransportError, match=words) as caught:
        await heard(data, None, 1)
    assert "https://proxy.example:443" in str(caught.value)


class Beside:
    """HTTP datagrams beside a stream."""

    def __init__(self, largest: int, *come: bytes) -> None:
        self.largest_datagram = largest
        self.come = list(come)
        self.sent: list[bytes] = []

    def send_datagrams(self, payloads: Sequence[bytes]) -> None:
        self.sent += payloads

    def take_datagrams(self) -> list[bytes]:
        come, self.come = self.come, []
        return come


@pytest.mark.parametrize("largest", [0, 1200, 1201, 1300])
async def test_beside_the_stream_where_quic_fits(largest: int) -> None:
    """Capsules are understood all the same. Unknown contexts, and what has none, are dropped (RFC 9298 §4)."""

    fits = largest >= 1201
    heard: list[bytes] = []

    def script(connection: PeerConnection) -> None:
        connection.send(b"\x00\x03\x00hi")
        heard.append(connection.read_exactly(5))

    with scripted_peer(script) as peer:
        tcp = TcpFilter("the proxy", lambda: connect_tcp(peer.host, peer.port, ask=resolve), ReceiveBuffer())
        beside = Beside(largest, b"\0one", b"\x02two", b"", b"\0")
        top = ConnectUdpFilter(tcp, beside, proxy="https://proxy.example:443", host="origin.example", port=443)
        tunnel = Stack(tcp)
        await tunnel.connect()
        await tunnel.push(top)
        assert top.receive_nowait() == [Run.of_one(b"one"), Run.of_one(b"")]
        with anyio.fail_after(30):
            while (capsules := top.receive_nowait()) is None:
                await top.wait_readable()
        assert capsules == [Run.of_one(b"hi")]
        top.send([b"yo"])
        assert beside.sent == ([b"\0yo"] if fits else [])
        assert top.largest == (largest - 1 if fits else 65527)
        tcp.abort(reset=False)
        peer.wait_ended()
        assert heard == [b"" if fits else b"\x00\x03\x00yo"]


# Requests


def pool_through(port: int, **settings: Any) -> ConnectionPool:
    trusting = certificates().client_context()
    hop = ProxyHop("https", "localhost", port, auth=(b"ada", b"l"), ssl_context=trusting)
    return ConnectionPool(ssl_context=trusting, proxies=(hop,), **settings)


async def test_http3_inside_http2() -> None:
    script = Http2Proxy(settings={8: 1})  # ENABLE_CONNECT_PROTOCOL
    with caddy() as origin, scripted_peer(script, tls=h2_tls()) as proxy:
        url = f"https://127.0.0.1:{origin.port}"
        async with pool_through(proxy.port, http3="only", grace=30) as pool:
            response = await pool.request("GET", url)
            assert (response.http_version, await response.read()) == (b"HTTP/3", HELLO)
            assert len(await (await pool.request("GET", f"{url}/10mb")).read()) == TEN_MB
        report = pool.close_report
        assert isinstance(report, CloseReport)
        assert report.clean
        # (Sorted: which of the two is told first is the event loop's affair, once the tunnel has ended.)
        assert sorted([layer.layer for layer in end.layers] for end in report.connections) == [
            ["h2", "tls", "tcp"],
            ["h3", "quic", "connect-udp", "tunnel"],
        ]
        assert script.streams == [{1: "ended"}]
        [request] = script.talks[0].requests.values()
        assert request.headers[":path"] == f"/.well-known/masque/udp/127.0.0.1/{origin.port}/"
        assert request.headers[":authority"] == f"localhost:{proxy.port}"
        assert request.headers["capsule-protocol"] == "?1"
        assert request.headers["proxy-authorization"] == "Basic YWRhOmw="
        await proxy.ended()
        assert proxy.connections[0].saw == ["close_notify", "FIN"]


async def test_a_proxy_without_it() -> None:
    """``http3=True`` takes TCP then; ``"only"`` says why it cannot be."""

    def refuse(talk: Talk, request: Request) -> bool:
        if ":protocol" in request.headers:
            talk.answer(request, b"not here", status=501)
        return ":protocol" in request.headers

    for script in (Http2Proxy(), Http2Proxy(refuse, settings={8: 1})):
        with caddy() as origin, scripted_peer(script, tls=h2_tls()) as proxy:
            url = f"https://localhost:{origin.port}"
            async with pool_through(proxy.port, http3=True, http3_origins=frozenset({url})) as pool:
                assert (await pool.request("GET", url)).http_version == b"HTTP/2"
            async with pool_through(proxy.port, http3="only") as pool:
                with pytest.raises(ConnectFailed, match="the proxy https://localhost") as caught:
                    await pool.request("GET", url)
                assert caught.value.phase == "proxy"


async def test_a_way_without_datagrams() -> None:
    with scripted_peer(connect_proxy()) as proxy:
        hop = ProxyHop("http", proxy.host, proxy.port)
        async with ConnectionPool(proxies=(hop,), http3="only") as pool:
            for scheme in ("http", "https"):
                with pytest.raises(ConnectFailed, match="HTTP/3 only"):
                    await pool.request("GET", f"{scheme}://origin.example/")
        assert proxy.connections == []
