"""The time to the first response where QUIC or TCP is swallowed: that of the other one and the stagger, no more."""

from __future__ import annotations

from time import monotonic

import pytest

from allswell import ConnectionPool
from allswell._config import Timeouts
from tests.support.capture import capture, needs_capture
from tests.support.certificates import certificates
from tests.support.holes import UdpHole, tcp_hole
from tests.support.lag import LAG, stagger
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer
from tests.support.scripts import answers
from tests.support.udp_relay import UdpRelay, Weather

pytestmark = pytest.mark.anyio

SOON = Timeouts(connect=30, read=30, write=30, pool=30, total=30)


async def first_response(origin: str) -> tuple[bytes, float]:
    """By a pool that knows of HTTP/3 there, and nothing else yet: the version that answered, and after how long."""
    async with ConnectionPool(
        http3=True, http3_origins=frozenset({origin}), ssl_context=certificates().client_context()
    ) as pool:
        began = monotonic()
        response = await pool.request("GET", f"{origin}/hello", timeouts=SOON)
        return response.http_version, monotonic() - began


async def test_udp_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    stagger(monkeypatch, 2.0)
    with scripted_peer(answers(), tls=certificates().server_context()) as peer, UdpHole(peer.port) as hole:
        version, seconds = await first_response(f"https://127.0.0.1:{peer.port}")
        assert version == b"HTTP/1.1"
        assert seconds > 1.9
        assert len(hole.swallowed()[0]) >= 1200  # QUIC was tried (RFC 9000 §14.1)


async def test_tcp_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    stagger(monkeypatch, 3 * LAG)
    with tcp_hole() as port, QuicServer(port=port) as server:
        version, seconds = await first_response(f"https://127.0.0.1:{server.port}")
        assert version == b"HTTP/3"
        assert seconds < LAG


@needs_capture
async def test_tcp_is_swallowed_and_quic_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handshake takes longer than the stagger, so TCP is tried in vain, and QUIC still comes."""
    stagger(monkeypatch)
    slow = Weather(delay=(0.2, 0.2))
    with tcp_hole() as port, QuicServer() as server, UdpRelay(server.port, up=slow, down=slow, port=port) as relay:
        with capture(relay.port, "127.0.0.1") as seen:
            version, seconds = await first_response(f"https://127.0.0.1:{relay.port}")
            seen.sync()
        assert version == b"HTTP/3"
        assert seconds > 0.4  # a round trip
        assert any("SYN" in packet.flags and packet.from_client for packet in seen.packets)
