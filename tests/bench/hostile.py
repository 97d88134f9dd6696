"""A server that sends one thing for ever: ``python -m tests.bench.hostile NAME``. It says where it is."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import repeat
from typing import Any

from aioquic.buffer import encode_uint_var
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.tls import Epoch

from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, Request, Talk, h2_tls
from tests.support.peer import PeerConnection, Script, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection

_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def _http1(first: bytes, for_ever: bytes) -> Script:
    def script(connection: PeerConnection) -> None:
        if connection.read_head():
            connection.send(first)
            for block in repeat(for_ever * 5000):
                connection.send(block)

    return script


def _frame(kind: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, 0)) + stream.to_bytes(4, "big") + payload


def _http2(kind: int, stream: int, payload: bytes) -> Script:
    """One byte of DATA, and such a frame, for ever."""

    def handle(talk: Talk, request: Request) -> None:
        talk.send(talk.headers(request.stream, [(":status", "200")]))
        block = (_frame(0, request.stream, b"x") + _frame(kind, stream, payload)) * 2000
        for each in repeat(block):
            talk.connection.send(each)

    return Http2Server(handle)


def _quic(frames: bytes) -> Callable[[ServedConnection, int, dict[bytes, bytes]], None]:
    """Packets that are full of such frames, for ever. (Some thousand a second: no client takes more.)"""

    def handle(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.head(stream, 200)
        connection.flush()
        quic = connection.quic
        assert quic._version is not None
        for _ in repeat(None):
            for _ in range(20):
                builder = QuicPacketBuilder(
                    host_cid=quic.host_cid,
                    peer_cid=quic._peer_cid.cid,
                    version=quic._version,
                    is_client=False,
                    max_datagram_size=1200,
                    packet_number=quic._packet_number,
                )
                builder.start_packet(QuicPacketType.ONE_RTT, quic._cryptos[Epoch.ONE_RTT])
                builder.start_frame(frames[0])
                builder._buffer.push_bytes((frames * (1100 // len(frames)))[1:])
                [datagram], _ = builder.flush()
                quic._packet_number = builder.packet_number
                connection.server._sock.sendto(datagram, connection.address)
            time.sleep(0.005)

    return handle


def _tiny(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
    connection.head(stream, 200)
    connection.raw(stream, b"\0\1x" * 10_000_000)


INPUTS: dict[str, Script | Callable[..., None]] = {
    "h1, 1-byte chunks": _http1(_CHUNKED, b"1\r\nx\r\n"),
    "h1, interim responses": _http1(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "h1, trailers": _http1(_CHUNKED + b"0\r\n", b"a: b\r\n"),
    "h2, DATA and WINDOW_UPDATE": _http2(8, 0, b"\0\0\0\1"),
    "h2, DATA and PING": _http2(6, 0, b"12345678"),
    "h2, DATA and SETTINGS": _http2(4, 0, b""),
    "h2, DATA and ORIGIN": _http2(12, 0, b"\0\x0bhttps://a.b" * 20),
    "h2, DATA and PRIORITY": _http2(2, 1, b"\0\0\0\0\1"),
    "h3, PING": _quic(bytes((QuicFrameType.PING,))),
    "h3, CRYPTO": _quic(bytes((QuicFrameType.CRYPTO, 0, 1, 0))),
    "h3, MAX_DATA": _quic(bytes((QuicFrameType.MAX_DATA,)) + encode_uint_var(1 << 20)),
    "h3, ACK": _quic(bytes((QuicFrameType.ACK, 1, 0, 0, 0))),
    "h3, empty STREAM": _quic(b"\x0a\0\0"),
    "h3, 1-byte DATA": _tiny,
}


def main(name: str) -> None:
    """Serve it until killed."""
    what: Any = INPUTS[name]
    server: AbstractContextManager[Any]
    if name.startswith("h3"):
        server = QuicServer({b"/": what})
    else:
        server = scripted_peer(what, tls=h2_tls() if name.startswith("h2") else True)
    with server as peer:
        print(json.dumps({"url": f"https://localhost:{peer.port}", "ca": str(certificates().ca)}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
