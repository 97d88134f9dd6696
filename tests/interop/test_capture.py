"""What is read from the relay's capture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import encode_quic_retry, encode_quic_version_negotiation, pull_quic_header
from interop.capture import Capture
from interop.cases import CASES, Difference, ended_well
from interop.relay import Relay, Scenario

from tests.support.quic_client import quic_client, quic_settings
from tests.support.quic_server import QuicServer

pytestmark = pytest.mark.anyio


async def test_a_version_negotiation_packet_that_the_client_ignores(tmp_path: Path) -> None:
    """An Initial packet whose version is corrupted on the way is answered by one; all goes on as it was."""
    keylog = tmp_path / "keys.log"
    with QuicServer() as server, Relay([("127.0.0.1", server.port)], Scenario()) as relay:
        async with quic_client(relay.fronts[0][1], quic_settings(keylog_file=str(keylog))) as client:
            await client.get("/hello")
            await client.aclose()
    datagrams = relay.capture
    ended_well(Capture(datagrams, keylog))
    at = next(index for index, each in enumerate(datagrams) if not each.from_client)
    vn = encode_quic_version_negotiation(source_cid=b"server", destination_cid=b"client", supported_versions=[1])
    answered = [*datagrams[: at + 1], replace(datagrams[at], data=vn), *datagrams[at + 1 :]]
    ended_well(Capture(answered, keylog))
    with pytest.raises(Difference, match="connections that the client closed: 0 of 1"):
        ended_well(Capture(answered[: at + 2], keylog))  # up to there the client has not closed it


async def test_a_second_retry_that_the_client_ignores(tmp_path: Path) -> None:
    """A server that is slow to answer finds more than one Initial packet, and answers each (RFC 9000 §17.2.5.2)."""
    [case] = [case for case in CASES if case.name == "retry"]
    keylog = tmp_path / "keys.log"
    with QuicServer(retry=True) as server, Relay([("127.0.0.1", server.port)], Scenario()) as relay:
        async with quic_client(relay.fronts[0][1], quic_settings(keylog_file=str(keylog))) as client:
            await client.get("/hello")
            await client.aclose()
    datagrams = relay.capture
    case.check(Capture(datagrams, keylog))
    at = next(index for index, each in enumerate(datagrams) if not each.from_client)
    first = pull_quic_header(Buffer(data=datagrams[at].data))
    asked = pull_quic_header(Buffer(data=datagrams[0].data))
    assert first.version is not None
    second = encode_quic_retry(first.version, b"another!", first.destination_cid, asked.destination_cid, b"its token")
    case.check(Capture([*datagrams[: at + 1], replace(datagrams[at], data=second), *datagrams[at + 1 :]], keylog))
    lost = replace(datagrams[at], data=second, arrived=None)
    case.check(Capture([*datagrams[:at], lost, *datagrams[at:]], keylog))


async def test_the_slowest_handshake(tmp_path: Path) -> None:
    """From the first Initial packet to the client's first 1-RTT packet, of two connections."""
    keylog = tmp_path / "keys.log"
    with QuicServer() as server, Relay([("127.0.0.1", server.port)], Scenario()) as relay:
        for _ in range(2):
            async with quic_client(relay.fronts[0][1], quic_settings(keylog_file=str(keylog))) as client:
                await client.get("/hello")
                await client.aclose()
    first, *others = relay.capture
    took = Capture([first, *others], keylog).slowest_handshake()
    assert 0 < took < others[-1].at - first.at
    later = [replace(each, at=each.at + 100) for each in others]
    assert 100 < Capture([first, *later], keylog).slowest_handshake() < 101 + others[-1].at
