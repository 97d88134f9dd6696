"""What crossed the path, taken apart: packets, their frames, and what they prove.

The datagrams come from the relay, the keys from the client's ``SSLKEYLOGFILE``; packet protection is aioquic's, the
rest is written from RFC 9000 and RFC 9001. It is what the runner has tshark do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aioquic._buffer import Buffer, BufferReadError
from aioquic._crypto import CryptoError
from aioquic.quic.crypto import CryptoContext, CryptoPair, apply_key_phase, next_key_phase
from aioquic.quic.packet import QuicHeader, QuicPacketType, pull_quic_header
from aioquic.tls import CipherSuite

from interop.relay import Address, Datagram

_CLIENT_CID = 8  # the length of the connection ids that aioquic's client gives itself
_TAG = 16


@dataclass(frozen=True)
class Frame:
    """A frame (RFC 9000 §19), as far as anybody asks.

    :ivar value: the data of PATH_CHALLENGE and PATH_RESPONSE; the connection id of NEW_CONNECTION_ID; the code of
        CONNECTION_CLOSE; ``(offset, data)`` of CRYPTO; the counts of ACK_ECN.
    """

    type: int
    value: Any = None


@dataclass
class Packet:
    """A QUIC packet.

    :ivar type: ``"initial"``, ``"0rtt"``, ``"handshake"``, ``"1rtt"``, ``"retry"`` or ``"vn"``.
    :ivar size: bytes of its protected payload.
    :ivar key_phase, number, frames, connection: known where it could be decrypted (``frames`` is ``None`` where not).
    """

    datagram: Datagram
    type: str
    version: int | None
    scid: bytes
    dcid: bytes
    token: bytes
    size: int
    key_phase: int = 0
    number: int = -1
    frames: list[Frame] | None = None
    connection: _Connection | None = None

    @property
    def from_client(self) -> bool:
        return self.datagram.from_client


_TYPES = {
    QuicPacketType.INITIAL: "initial",
    QuicPacketType.ZERO_RTT: "0rtt",
    QuicPacketType.HANDSHAKE: "handshake",
    QuicPacketType.RETRY: "retry",
    QuicPacketType.ONE_RTT: "1rtt",
    QuicPacketType.VERSION_NEGOTIATION: "vn",
}


@dataclass(eq=False)
class _Connection:
    """The keys of one connection, as they become known."""

    initial_dcid: bytes
    client_cid: bytes
    version: int | None
    retried: bool = False
    server_cid_length: int = 0
    initial: dict[tuple[int, bytes], tuple[CryptoPair, CryptoPair]] = field(default_factory=dict)
    secrets: dict[tuple[str, bool], CryptoContext] = field(default_factory=dict)
    crypto: dict[tuple[str, bool], dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    largest: dict[tuple[str, bool], int] = field(default_factory=dict)
    random: bytes | None = None
    suite: int | None = None
    first_hello: bytes = b""

    def stream(self, kind: str, from_client: bool) -> bytes:
        """The CRYPTO stream of one level, from its start, as far as it is known without a gap."""
        data = b""
        for offset, piece in sorted(self.crypto[kind, from_client].items()):
            if offset > len(data):
                break
            data += piece[len(data) - offset :]
        return data


class Capture:
    """All packets of a capture, decrypted as far as the key log allows.

    :ivar packets: in the order in which their datagrams entered the path.
    """

    def __init__(self, datagrams: Sequence[Datagram], keylog: Path) -> None:
        self.packets: list[Packet] = []
        self._keylog = _read_keylog(keylog)
        self._by_client: dict[Address, _Connection] = {}
        self.connections: list[_Connection] = []
        for datagram in datagrams:
            self._take_apart(datagram)

    # What the runner asks

    def of(self, kind: str, *, from_client: bool | None = None) -> list[Packet]:
        """Packets of a type."""
        return [each for each in self.packets if each.type == kind and from_client in (None, each.from_client)]

    def handshakes(self) -> int:
        """By the connection ids that servers gave themselves in Initial packets."""
        return len({packet.scid for packet in self.of("initial", from_client=False)})

    def slowest_handshake(self) -> float:
        """Seconds from a connection's first Initial packet to the client's first 1-RTT packet: the most."""
        began: dict[_Connection, float] = {}
        slowest = 0.0
        for packet in self.packets:
            if packet.connection is None or not packet.from_client:
                continue
            at = packet.datagram.at
            if packet.type == "1rtt":
                slowest = max(slowest, at - began.pop(packet.connection, at))
            elif packet.type == "initial":
                began.setdefault(packet.connection, at)
        return slowest

    def versions(self, kind: str, *, from_client: bool) -> set[int]:
        """Which versions packets of a type had."""
        return {packet.version or 0 for packet in self.of(kind, from_client=from_client)}

    def certificates(self) -> list[bool]:
        """For each connection, whether the server sent a Certificate message."""
        return [11 in _messages(each.stream("handshake", False)) for each in self.connections]

    def client_hellos(self) -> list[bytes]:
        """For each connection, its ClientHello."""
        return [each.stream("initial", True) for each in self.connections]

    def frames(self, *types: int, from_client: bool) -> list[tuple[Packet, Frame]]:
        """Frames of some types, with their packets."""
        return [
            (packet, frame)
            for packet in self.packets
            if packet.from_client is from_client
            for frame in packet.frames or ()
            if frame.type in types
        ]

    # How it is read

    def _take_apart(self, datagram: Datagram) -> None:
        buf = Buffer(data=datagram.data)
        connection = self._by_client.get(datagram.client)
        while not buf.eof():
            start = buf.tell()
            cid_length = _CLIENT_CID
            if datagram.from_client:
                cid_length = connection.server_cid_length if connection is not None else self._any_server_cid_length()
            try:
                header = pull_quic_header(buf, host_cid_length=cid_length)
            except ValueError:
                return  # padding behind the last packet (RFC 9000 §12.2 has it dropped), or a stateless reset
            offset = buf.tell() - start
            data = datagram.data[start : start + header.packet_length]
            buf.seek(start + header.packet_length)
            packet = Packet(
                datagram,
                _TYPES[header.packet_type],
                header.version,
                header.source_cid,
                header.destination_cid,
                header.token,
                len(data) - offset,
            )
            self.packets.append(packet)
            if packet.type == "initial" and datagram.from_client:
                connection = self._begun(datagram, header, connection)
            if packet.type in ("vn", "retry"):
                if connection is not None and datagram.arrived is not None:
                    self._start_over(connection, header, packet.type == "retry")
                return
            if connection is None:
                connection = self._find(data, offset)
                if connection is None:
                    continue
                self._by_client[datagram.client] = connection
            self._decrypt(connection, packet, data, offset)

    def _begun(self, datagram: Datagram, header: QuicHeader, known: _Connection | None) -> _Connection:
        """The connection of a client's Initial packet: a new one, unless it goes on."""
        if known is not None and known.client_cid == header.source_cid:
            return known
        connection = _Connection(header.destination_cid, header.source_cid, header.version)
        self.connections.append(connection)
        self._by_client[datagram.client] = connection
        return connection

    def _start_over(self, connection: _Connection, header: QuicHeader, retry: bool) -> None:
        """After Retry and Version Negotiation the client says hello anew; after the latter in other words."""
        if not retry and connection.version in header.supported_versions:
            return  # RFC 9000 §6.2: ignored; it answers an Initial packet whose version was corrupted on the way
        if retry:
            if connection.retried:
                return  # RFC 9000 §17.2.5.2: ignored; the server has sent one for each of several Initial packets
            connection.retried = True
            connection.initial_dcid = header.source_cid
        connection.random = None
        connection.first_hello = connection.stream("initial", True)
        connection.crypto.pop(("initial", True), None)

    def _any_server_cid_length(self) -> int:
        return self.connections[-1].server_cid_length if self.connections else _CLIENT_CID

    def _find(self, data: bytes, offset: int) -> _Connection | None:
        """Whose a packet from an unknown address is: whose keys open it."""
        for connection in reversed(self.connections):
            context = connection.secrets.get(("1rtt", True))
            if context is None:
                continue
            try:
                context.decrypt_packet(data, offset, connection.largest.get(("1rtt", True), -1) + 1)
            except CryptoError:
                continue
            return connection
        return None

    def _decrypt(self, connection: _Connection, packet: Packet, data: bytes, offset: int) -> None:
        context = self._context(connection, packet)
        if context is None:
            return
        space = (packet.type, packet.from_client)
        expected = connection.largest.get(space, -1) + 1
        try:
            header, payload, number, flipped = context.decrypt_packet(data, offset, expected)
        except CryptoError:
            return
        if flipped:
            apply_key_phase(context, next_key_phase(context), trigger="capture")
        packet.number, packet.connection = number, connection
        packet.key_phase = header[0] >> 2 & 1 if packet.type == "1rtt" else 0
        connection.largest[space] = max(connection.largest.get(space, -1), number)
        packet.frames = list(_frames(payload))
        for frame in packet.frames:
            if frame.type == 0x06:
                connection.crypto[space].setdefault(*frame.value)
        if packet.type == "initial":
            if not packet.from_client and not connection.server_cid_length:
                connection.server_cid_length = len(packet.scid)
            self._learn(connection)

    def _learn(self, connection: _Connection) -> None:
        """From the hellos: the client's random, under which secrets are logged, and the cipher suite."""
        hello = connection.stream("initial", True)
        if connection.random is None and len(hello) >= 38:
            connection.random = hello[6:38]
        hello = connection.stream("initial", False)
        if connection.suite is None and len(hello) > 41 + 32:
            start = 39 + hello[38]
            connection.suite = int.from_bytes(hello[start : start + 2], "big")

    def _context(self, connection: _Connection, packet: Packet) -> CryptoContext | None:
        if packet.type == "initial":
            assert packet.version is not None
            key = (packet.version, connection.initial_dcid)
            if key not in connection.initial:
                pairs = CryptoPair(), CryptoPair()
                for pair, is_client in zip(pairs, (True, False), strict=True):
                    pair.setup_initial(connection.initial_dcid, is_client, packet.version)
                connection.initial[key] = pairs
            return connection.initial[key][packet.from_client].recv
        name = {"handshake": "HANDSHAKE_TRAFFIC_SECRET", "1rtt": "TRAFFIC_SECRET_0"}.get(packet.type)
        if name is None or connection.random is None or connection.suite is None:
            return None
        key_ = (packet.type, packet.from_client)
        context = connection.secrets.get(key_)
        if context is None:
            side = "CLIENT" if packet.from_client else "SERVER"
            secret = self._keylog.get((f"{side}_{name}", connection.random))
            if secret is None:
                return None
            context = CryptoContext()
            versions = self.versions("handshake", from_client=False)
            version = packet.version if packet.version is not None else max(versions)
            context.setup(cipher_suite=CipherSuite(connection.suite), secret=secret, version=version)
            connection.secrets[key_] = context
        return context


def _read_keylog(path: Path) -> Mapping[tuple[str, bytes], bytes]:
    if not path.exists():
        return {}
    lines = (line.split() for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {(label, bytes.fromhex(random)): bytes.fromhex(secret) for label, random, secret in lines}


def _messages(data: bytes) -> list[int]:
    """Types of the handshake messages in a CRYPTO stream (RFC 8446 §4)."""
    types = []
    while len(data) >= 4:
        types.append(data[0])
        data = data[4 + int.from_bytes(data[1:4], "big") :]
    return types


#: Frames that are a type and so many variable-length integers (RFC 9000 §19).
_INTEGERS = {0x01: 0, 0x04: 3, 0x05: 2, 0x10: 1, 0x11: 2, 0x12: 1, 0x13: 1, 0x14: 1, 0x15: 2, 0x16: 1, 0x17: 1, 0x19: 1}


def _frames(payload: bytes) -> Iterable[Frame]:
    buf = Buffer(data=payload)
    try:
        while not buf.eof():
            kind = buf.pull_uint_var()
            if kind == 0x00:
                continue
            if kind in _INTEGERS:
                for _ in range(_INTEGERS[kind]):
                    buf.pull_uint_var()
                yield Frame(kind)
            elif kind in (0x02, 0x03):  # ACK
                buf.pull_uint_var()
                buf.pull_uint_var()
                ranges = buf.pull_uint_var()
                for _ in range(1 + 2 * ranges):
                    buf.pull_uint_var()
                yield Frame(kind, tuple(buf.pull_uint_var() for _ in range(3)) if kind == 0x03 else None)
            elif kind == 0x06:  # CRYPTO
                offset = buf.pull_uint_var()
                yield Frame(kind, (offset, buf.pull_bytes(buf.pull_uint_var())))
            elif kind == 0x07:  # NEW_TOKEN
                buf.pull_bytes(buf.pull_uint_var())
                yield Frame(kind)
            elif 0x08 <= kind <= 0x0F:  # STREAM
                stream = buf.pull_uint_var()
                if kind & 0x04:
                    buf.pull_uint_var()
                size = buf.pull_uint_var() if kind & 0x02 else len(payload) - buf.tell()
                buf.pull_bytes(size)
                yield Frame(0x08, (stream, size))
            elif kind == 0x18:  # NEW_CONNECTION_ID
                buf.pull_uint_var()
                buf.pull_uint_var()
                cid = buf.pull_bytes(buf.pull_uint8())
                buf.pull_bytes(16)
                yield Frame(kind, cid)
            elif kind in (0x1A, 0x1B):  # PATH_CHALLENGE, PATH_RESPONSE
                yield Frame(kind, buf.pull_bytes(8))
            elif kind in (0x1C, 0x1D):  # CONNECTION_CLOSE
                code = buf.pull_uint_var()
                if kind == 0x1C:
                    buf.pull_uint_var()
                buf.pull_bytes(buf.pull_uint_var())
                yield Frame(kind, code)
            elif kind == 0x1E:  # HANDSHAKE_DONE
                yield Frame(kind)
            elif kind in (0x30, 0x31):  # DATAGRAM (RFC 9221)
                buf.pull_bytes(buf.pull_uint_var() if kind & 1 else len(payload) - buf.tell())
                yield Frame(kind)
            else:
                return  # an extension that nobody here negotiates
    except BufferReadError:
        return
