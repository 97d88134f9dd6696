"""A QUIC server on aioquic, for the cases that the servers of this machine cannot play.

``hq-interop`` and ``h3``, Retry, 0-RTT, version 2, a preferred address. It serves the files of one folder and runs
until it is killed. Nothing of it is allswell's: were it, both ends could share a misunderstanding.
"""

from __future__ import annotations

import argparse
import secrets
import select
import socket
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from aioquic._buffer import Buffer
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.events import HandshakeCompleted, StreamDataReceived
from aioquic.quic.logger import QuicFileLogger
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicPreferredAddress,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
    pull_quic_transport_parameters,
    push_quic_transport_parameters,
)
from aioquic.tls import CipherSuite, SessionTicket

CID_LENGTH = 8
VERSIONS = {"1": QuicProtocolVersion.VERSION_1, "2": QuicProtocolVersion.VERSION_2}


class Connection(QuicConnection):
    """aioquic's server side, which can announce a preferred address (RFC 9000 §9.6)."""

    preferred: tuple[str, int] | None = None

    def _serialize_transport_parameters(self) -> bytes:
        data: bytes = super()._serialize_transport_parameters()
        if self.preferred is None:
            return data
        self._replenish_connection_ids()
        spare = next(cid for cid in self._host_cids if cid.sequence_number == 1)
        spare.was_sent = True  # sequence number 1 is the preferred address's, and goes here (RFC 9000 §18.2)
        parameters = pull_quic_transport_parameters(Buffer(data=data))
        parameters.preferred_address = QuicPreferredAddress(
            ipv4_address=self.preferred,
            ipv6_address=None,
            connection_id=spare.cid,
            stateless_reset_token=spare.stateless_reset_token,
        )
        buf = Buffer(capacity=4096)
        push_quic_transport_parameters(buf, parameters)
        return bytes(buf.data)


class Server:
    """The server; see the command line for what it can be told."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=options.alpn,
            cipher_suites=[CipherSuite(int(each, 16)) for each in options.cipher_suites] or None,
            supported_versions=[VERSIONS[each] for each in options.versions],
            idle_timeout=30.0,
        )
        self.configuration.load_cert_chain(options.certificate, options.key)
        if options.qlog is not None:
            self.configuration.quic_logger = QuicFileLogger(options.qlog)
        self.sockets = [_listen(options.host, port) for port in (options.port, options.also_port) if port]
        self.routes: dict[Any, socket.socket] = {}  # by the client's address: the socket that it knows
        self.connections: dict[bytes, Connection] = {}
        self.http3: dict[Connection, H3Connection] = {}
        self.requests: dict[tuple[Connection, int], bytes] = {}
        self.tickets: dict[bytes, SessionTicket] = {}
        self.retried: dict[bytes, bytes] = {}

    def serve(self) -> None:
        """For ever."""
        while True:
            alive = set(self.connections.values())
            timers = [timer for each in alive if (timer := each.get_timer()) is not None]
            timeout = max(0.0, min(timers) - monotonic()) if timers else None
            touched: set[Connection] = set()
            for sock in select.select(self.sockets, [], [], timeout)[0]:
                for _ in range(64):
                    try:
                        data, address = sock.recvfrom(65535)
                    except BlockingIOError:
                        break
                    self.routes[address] = sock
                    connection = self.receive(data, address)
                    if connection is not None:
                        touched.add(connection)
            now = monotonic()
            for connection in alive:
                timer = connection.get_timer()
                if timer is not None and timer <= now:
                    connection.handle_timer(now)
                    touched.add(connection)
            for connection in touched:
                self.events(connection)
                for datagram, address in connection.datagrams_to_send(now):
                    try:
                        self.routes[address].sendto(datagram, address)
                    except BlockingIOError:
                        continue  # as good as lost
                if connection._state is QuicConnectionState.TERMINATED:
                    self.forget(connection)

    def receive(self, data: bytes, address: Any) -> Connection | None:
        """One datagram; whose it was."""
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CID_LENGTH)
        except ValueError:
            return None
        connection = self.connections.get(header.destination_cid)
        if connection is None:
            connection = self.accept(data, header, address)
        if connection is not None:
            connection.receive_datagram(data, address, monotonic())
        return connection

    def accept(self, data: bytes, header: QuicHeader, address: Any) -> Connection | None:
        """A connection for an Initial packet, unless it is to be answered without one."""
        if header.version is not None and header.version not in self.configuration.supported_versions:
            self.routes[address].sendto(
                encode_quic_version_negotiation(
                    source_cid=header.destination_cid,
                    destination_cid=header.source_cid,
                    supported_versions=self.configuration.supported_versions,
                ),
                address,
            )
            return None
        if header.packet_type != QuicPacketType.INITIAL or len(data) < 1200:
            return None
        original, retry_source = header.destination_cid, None
        if self.options.retry:
            known = self.retried.get(header.token)
            if known is None:
                token = secrets.token_bytes(16)
                self.retried[token] = header.destination_cid
                assert header.version is not None
                self.routes[address].sendto(
                    encode_quic_retry(
                        version=header.version,
                        source_cid=secrets.token_bytes(CID_LENGTH),
                        destination_cid=header.source_cid,
                        original_destination_cid=header.destination_cid,
                        retry_token=token,
                    ),
                    address,
                )
                return None
            original, retry_source = known, header.destination_cid
        connection = Connection(
            configuration=self.configuration,
            original_destination_connection_id=original,
            retry_source_connection_id=retry_source,
            session_ticket_fetcher=lambda label: self.tickets.pop(label, None),
            session_ticket_handler=lambda ticket: self.tickets.__setitem__(ticket.ticket, ticket),
        )
        connection.preferred = self.options.preferred
        self.connections[header.destination_cid] = connection
        self.connections[connection.host_cid] = connection
        return connection

    def events(self, connection: Connection) -> None:
        """What the datagrams meant."""
        while (event := connection.next_event()) is not None:
            if isinstance(event, HandshakeCompleted):
                print(f"handshake: {event.alpn_protocol}, resumed {event.session_resumed}", flush=True)
            http3 = self.http3.get(connection)
            if http3 is None and "h3" in self.options.alpn and connection._cryptos:
                http3 = self.http3[connection] = H3Connection(connection)
            if http3 is not None:
                for http in http3.handle_event(event):
                    if isinstance(http, HeadersReceived):
                        self.respond_h3(http3, http.stream_id, dict(http.headers))
            elif isinstance(event, StreamDataReceived):
                key = (connection, event.stream_id)
                request = self.requests.pop(key, b"") + event.data
                if event.end_stream:
                    body = self.file(request.split(b" ", 1)[1].rstrip(b"\r\n"))
                    connection.send_stream_data(event.stream_id, body or b"", True)
                else:
                    self.requests[key] = request
        for cid in connection._host_cids:
            self.connections[cid.cid] = connection

    def respond_h3(self, http3: H3Connection, stream: int, head: Mapping[bytes, bytes]) -> None:
        """The file, or 404."""
        body = self.file(head[b":path"])
        http3.send_headers(stream, [(b":status", b"404" if body is None else b"200")], body is None)
        if body is not None:
            http3.send_data(stream, body, True)

    def file(self, path: bytes) -> bytes | None:
        """A file of the folder, not of any below it."""
        name = path.decode("ascii").lstrip("/")
        file = self.options.www / name
        return file.read_bytes() if name and "/" not in name and file.is_file() else None

    def forget(self, connection: Connection) -> None:
        """It is over."""
        self.connections = {cid: each for cid, each in self.connections.items() if each is not connection}
        self.requests = {key: data for key, data in self.requests.items() if key[0] is not connection}
        self.http3.pop(connection, None)


def _listen(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    sock.bind((host, port))
    return sock


def _address(text: str) -> tuple[str, int]:
    host, port = text.rsplit(":", 1)
    return host, int(port)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--also-port", type=int, help="a second port, for the preferred address")
    parser.add_argument("--preferred", type=_address, help="the preferred address to announce, IP:PORT")
    parser.add_argument("--www", type=Path, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--alpn", nargs="+", default=["hq-interop"])
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=["1"])
    parser.add_argument("--cipher-suites", nargs="+", default=[], help="by number, hexadecimal")
    parser.add_argument("--retry", action="store_true")
    parser.add_argument("--qlog", help="a folder")
    Server(parser.parse_args()).serve()
