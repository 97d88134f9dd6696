"""The runner's test cases as the local matrix plays them: files, scenario, what is asked of the server, what must show.

Sizes, scenarios and conditions are those of the runner's ``testcases_quic.py``. A check raises :class:`Difference`
with the first thing that differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

from interop.capture import Capture, Packet
from interop.relay import Direction, Scenario

KB, MB = 1 << 10, 1 << 20
VERSION_1, VERSION_2 = 1, 0x6B3343CF
_ACK_ECN, _PATH_CHALLENGE, _PATH_RESPONSE, _CLOSES, _HANDSHAKE_DONE = 0x03, 0x1A, 0x1B, (0x1C, 0x1D), 0x1E
#: The error codes that mean none: QUIC's and HTTP/0.9's, and HTTP/3's.
_NO_ERROR = (0, 0x100)
_APPLICATION_ERROR = 0x0C
#: Seconds that a handshake may take where much is lost. The runner only bounds all fifty together.
_PATIENCE = 15.0
#: Frames that only probe a path (RFC 9000 §9.1); PADDING is not among the parsed.
_PROBING = (_PATH_CHALLENGE, _PATH_RESPONSE, 0x18)


class Difference(Exception):
    """What differs from what the case demands."""


Check = Callable[[Capture], None]
SIMULATOR = Scenario(delay=0.015, bandwidth=10e6)


@dataclass(frozen=True)
class InteropCase:
    """One row of the matrix.

    :ivar told: what ``TESTCASE`` says.
    :ivar sizes: of the files, in bytes.
    :ivar mode: what is asked of the server (see ``servers.py``).
    :ivar alpn: where the case demands one.
    :ivar host: where the server is.
    :ivar chain: certificates below the root.
    :ivar measures: its result is a number: kbit/s.
    :ivar waits: seconds that it takes besides, for what is lost, or far away, or because it is many connections.
    """

    name: str
    told: str
    sizes: tuple[int, ...]
    check: Check
    scenario: Scenario = SIMULATOR
    mode: str = ""
    alpn: str | None = None
    host: str = "127.0.0.1"
    chain: int = 1
    name_length: int = 0
    timeout: float = 60.0
    measures: bool = False
    waits: float = 0.0

    @property
    def seconds(self) -> float:
        """About how long it takes: two programs start, and the files cross."""
        crossing = 8 * sum(self.sizes) / self.scenario.bandwidth if self.scenario.bandwidth else 0.0
        return 2.0 + crossing + self.waits


def _expect(what: str, expected: object, found: object) -> None:
    if expected != found:
        raise Difference(f"{what}: expected {expected!r}, found {found!r}")


def ended_well(capture: Capture) -> None:
    """Every connection was closed by the client, and nobody closed one with an error."""
    for from_client in (True, False):
        for packet, frame in capture.frames(*_CLOSES, from_client=from_client):
            if packet.type in ("initial", "handshake") and frame.value == _APPLICATION_ERROR:
                continue  # how an application's close is put where its code must not be seen yet (RFC 9000 §10.2.3)
            if frame.value not in _NO_ERROR:
                side = "client" if from_client else "server"
                at = packet.datagram.at
                raise Difference(f"the {side} closed with error 0x{frame.value:x}, {at:.3f} s after the start")
    closed = {packet.connection for packet, _ in capture.frames(*_CLOSES, from_client=True)}
    if len(closed) != capture.handshakes():
        left = [each.initial_dcid.hex() for each in capture.connections if each not in closed]
        raise Difference(
            f"connections that the client closed: {len(closed)} of {capture.handshakes()}; not {', '.join(left) or '?'}"
        )


def _one_connection(capture: Capture) -> None:
    _connections(capture, 1)


def _connections(capture: Capture, count: int) -> None:
    _expect("handshakes", count, capture.handshakes())
    _expect("versions of the server's Initial packets", {VERSION_1}, capture.versions("initial", from_client=False))


def _handshake(capture: Capture) -> None:
    _one_connection(capture)
    _expect("Retry packets", 0, len(capture.of("retry")))


def _long_rtt(capture: Capture) -> None:
    _one_connection(capture)
    hellos = [
        packet
        for packet in capture.of("initial", from_client=True)
        if any(frame.type == 0x06 and frame.value[0] == 0 for frame in packet.frames or ())
    ]
    if len(hellos) < 2:
        raise Difference(f"ClientHellos: expected at least 2, found {len(hellos)}")


def _chacha20(capture: Capture) -> None:
    _one_connection(capture)
    for hello in capture.client_hellos():
        start = 39 + hello[38]
        size = int.from_bytes(hello[start : start + 2], "big")
        _expect("cipher suites offered", "1303", hello[start + 2 : start + 2 + size].hex())


def _multiplexing(capture: Capture) -> None:
    _one_connection(capture)


def _retry(capture: Capture) -> None:
    _one_connection(capture)
    retries = capture.of("retry")
    if not retries:
        raise Difference("no Retry packet")
    tokens = {packet.token for packet in retries}
    initials = capture.of("initial", from_client=True)
    with_token = [packet for packet in initials if packet.token in tokens]
    if not with_token:
        raise Difference("no Initial packet with the token of a Retry packet")
    for connection in capture.connections:
        _expect("ClientHello after Retry", connection.first_hello, connection.stream("initial", True))
    before = max((packet.number for packet in initials if not packet.token), default=-1)
    if with_token[0].number <= before:
        raise Difference(f"the packet numbers began anew after Retry: {with_token[0].number} after {before}")


def _resumption(capture: Capture) -> None:
    _connections(capture, 2)
    _expect("Certificate messages, by connection", [True, False], capture.certificates())


def _zero_rtt(capture: Capture) -> None:
    _connections(capture, 2)
    if not sum(packet.size for packet in capture.of("0rtt")):
        raise Difference("no 0-RTT data")
    size = sum(packet.size for packet in capture.of("1rtt", from_client=True))
    if size > 5000:
        raise Difference(f"the client's 1-RTT packets: at most 5000 bytes expected, found {size}")


def _key_update(capture: Capture) -> None:
    _one_connection(capture)
    for from_client, side in ((True, "client"), (False, "server")):
        phases = {packet.key_phase for packet in capture.of("1rtt", from_client=from_client) if packet.frames}
        if 1 not in phases:
            raise Difference(f"no packet of the {side} in key phase 1")


def _ecn(capture: Capture) -> None:
    _one_connection(capture)
    for from_client, side in ((True, "client"), (False, "server")):
        marks = {packet.datagram.ecn for packet in capture.packets if packet.from_client is from_client}
        if not marks & {1, 2} or 3 in marks:
            raise Difference(f"ECN marks of the {side}: expected ECT(0) or ECT(1), found {sorted(marks)}")
        if not capture.frames(_ACK_ECN, from_client=from_client):
            raise Difference(f"no ACK frame with ECN counts from the {side}")


def _amplification(capture: Capture) -> None:
    _one_connection(capture)
    size = max(len(connection.stream("handshake", False)) for connection in capture.connections)
    if size < 7500:
        raise Difference(f"the server's Handshake CRYPTO: at least 7500 bytes expected, found {size}")
    if not any(packet.from_client and packet.type == "handshake" for packet in capture.packets):
        raise Difference("no Handshake packet from the client")


def _many(capture: Capture) -> None:
    _connections(capture, 50)
    slowest = capture.slowest_handshake()
    if slowest > _PATIENCE:
        raise Difference(f"handshakes: at most {_PATIENCE:g} s each expected, one took {slowest:.1f} s")


def _ipv6(capture: Capture) -> None:
    _one_connection(capture)
    if any(":" not in packet.datagram.client[0] for packet in capture.packets):
        raise Difference("packets over IPv4")


def _version_2(capture: Capture) -> None:
    if VERSION_1 not in capture.versions("initial", from_client=True):
        raise Difference("the client's first Initial packet was not in version 1")
    if VERSION_2 not in capture.versions("initial", from_client=False):
        raise Difference("the server sent no Initial packet in version 2")
    for from_client, side in ((True, "client"), (False, "server")):
        versions = capture.versions("handshake", from_client=from_client)
        _expect(f"versions of the {side}'s Handshake packets", {VERSION_2}, versions)


def _version_negotiation(capture: Capture) -> None:
    initials = capture.of("initial", from_client=True)
    if not any(packet.scid == initials[0].dcid for packet in capture.of("vn")):
        raise Difference("no Version Negotiation packet that answers the client's first")


def _paths(capture: Capture) -> None:
    """Every path that the server challenged was answered for."""
    _one_connection(capture)
    if len({(packet.datagram.seen_as, packet.datagram.front) for packet in capture.packets}) < 2:
        raise Difference("the server saw one path only")
    answered = {frame.value for _, frame in capture.frames(_PATH_RESPONSE, from_client=True)}
    challenges = capture.frames(_PATH_CHALLENGE, from_client=False)
    if not challenges:
        raise Difference("the server did not validate the new path: no PATH_CHALLENGE")
    for packet, frame in challenges:
        if packet.datagram.arrived is not None and frame.value not in answered:
            raise Difference(f"no PATH_RESPONSE to the PATH_CHALLENGE of {packet.datagram.at:.3f} s")


def _rebound(capture: Capture) -> None:
    _paths(capture)


def _rebound_address(capture: Capture) -> None:
    if len({packet.datagram.seen_as[0] for packet in capture.packets}) < 2:
        raise Difference("the server saw one address of the client only")
    _paths(capture)


def _migration(capture: Capture) -> None:
    _paths(capture)
    mine: list[Packet] = [packet for packet in capture.packets if packet.from_client and packet.type == "1rtt"]
    for before, after in pairwise(mine):
        if before.datagram.front != after.datagram.front and before.dcid == after.dcid:
            raise Difference("the first packet on the new path has the connection ID of the old one")
    moved = [packet for packet in mine if packet.datagram.front != mine[0].datagram.front]
    if not any(frame.type not in _PROBING for packet in moved for frame in packet.frames or ()):
        raise Difference("nothing but probing frames was sent to the preferred address")


def goodput(capture: Capture, size: int) -> float:
    """As the runner measures it: kbit/s, from the first to the last 1-RTT packet that the client received."""
    times = [
        packet.datagram.arrived
        for packet in capture.of("1rtt", from_client=False)
        if packet.datagram.arrived is not None
    ]
    return 8 * size / (max(times) - min(times)) / 1000


_LOSSY = Direction(loss=0.30), Direction(loss=0.02)
_CORRUPT = Direction(corruption=0.30), Direction(corruption=0.02)


def _through(direction: Direction) -> Scenario:
    return replace(SIMULATOR, to_server=direction, to_client=direction)


#: The simulator goes on for as long as it takes, which is three times at most where both ends have time. quic-go has no
#: connection ID left for a fourth: it retires none of those that it spends on new paths (its issue 5814).
_REBINDING = replace(SIMULATOR, rebind=(1.0, 5.0), rebindings=3)
_FIFTY = tuple([KB] * 50)

CASES = [
    InteropCase("versionnegotiation", "versionnegotiation", (KB,), _version_negotiation),
    InteropCase("handshake", "handshake", (KB,), _handshake),
    InteropCase("transfer", "transfer", (2 * MB, 3 * MB, 5 * MB), _one_connection),
    InteropCase("longrtt", "handshake", (KB,), _long_rtt, replace(SIMULATOR, delay=0.75), waits=4.0),
    InteropCase("chacha20", "chacha20", (3 * MB,), _chacha20, mode="chacha20"),
    InteropCase("multiplexing", "transfer", tuple([32] * 1999), _multiplexing, waits=4.0),
    InteropCase("retry", "retry", (10 * KB,), _retry, mode="retry"),
    InteropCase("resumption", "resumption", (5 * KB, 10 * KB), _resumption),
    InteropCase("zerortt", "zerortt", tuple([32] * 40), _zero_rtt, mode="0rtt", name_length=250, waits=1.0),
    InteropCase("http3", "http3", (5 * KB, 10 * KB, 500 * KB), _one_connection, alpn="h3"),
    InteropCase("blackhole", "transfer", (10 * MB,), _one_connection, replace(SIMULATOR, dark=(5.0, 2.0)), waits=3.0),
    InteropCase("keyupdate", "keyupdate", (3 * MB,), _key_update),
    InteropCase("ecn", "ecn", (100 * KB,), _ecn, mode="ecn"),
    InteropCase(
        "amplificationlimit",
        "transfer",
        (5 * KB,),
        _amplification,
        replace(SIMULATOR, to_server=Direction(drops=frozenset(range(2, 8)))),
        mode="chain",
        chain=9,
    ),
    InteropCase("handshakeloss", "multiconnect", _FIFTY, _many, _through(_LOSSY[0]), timeout=300, waits=100.0),
    InteropCase("transferloss", "transfer", (2 * MB,), _one_connection, _through(_LOSSY[1]), waits=8.0),
    InteropCase("handshakecorruption", "multiconnect", _FIFTY, _many, _through(_CORRUPT[0]), timeout=300, waits=100.0),
    InteropCase("transfercorruption", "transfer", (2 * MB,), _one_connection, _through(_CORRUPT[1]), waits=8.0),
    InteropCase("ipv6", "transfer", (5 * KB, 10 * KB), _ipv6, mode="ipv6", host="::1"),
    InteropCase("v2", "v2", (KB,), _version_2, mode="v2"),
    InteropCase("rebind-port", "transfer", (10 * MB,), _rebound, _REBINDING, mode="rebind"),
    InteropCase(
        "rebind-addr", "transfer", (10 * MB,), _rebound_address, replace(_REBINDING, rebind_address=True), mode="rebind"
    ),
    InteropCase("connectionmigration", "transfer", (2 * MB,), _migration, mode="preferred"),
    InteropCase("goodput", "transfer", (10 * MB,), _one_connection, measures=True),
    InteropCase(
        "crosstraffic",
        "transfer",
        (25 * MB,),
        _one_connection,
        replace(SIMULATOR, rival=True),
        timeout=180,
        measures=True,
        waits=24.0,
    ),
]

#: Enough to see that the endpoint works; a few seconds with each server.
QUICK = ("handshake", "chacha20", "retry", "resumption", "zerortt", "http3", "keyupdate", "ecn", "ipv6", "v2")
