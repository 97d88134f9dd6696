"""A DNS server that is asked by HTTPS (RFC 8484), in each version of HTTP; its zone is text."""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

import dns.message

from tests.support.certificates import certificates
from tests.support.dns_server import Reply, answered
from tests.support.h2_script import Http2Server, Request, Talk
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers, target


class Doh:
    """A DNS server by HTTPS, of one version of HTTP.

    :ivar queries: names and types, in order.
    :ivar reply: bytes to answer with, in place of what the zone says.
    """

    def __init__(self) -> None:
        self.zone = ""
        self.queries: list[str] = []
        self.reply: Reply | None = None
        self.status = 200

    def _answer(self, target: str) -> bytes:
        [content] = parse_qs(target.partition("?")[2])["dns"]
        query = dns.message.from_wire(urlsafe_b64decode(content + "=" * (-len(content) % 4)))
        assert query.id == 0  # RFC 8484 §4.1
        [question] = query.question
        self.queries.append(question.to_text().replace(". IN", ""))
        return self.reply(query) if self.reply is not None else answered(query, self.zone).to_wire()

    def http1(self, request: bytes) -> bytes:
        return self._answer(target(request).decode())

    def http2(self, talk: Talk, request: Request) -> None:
        assert request.headers["accept"] == "application/dns-message"
        talk.answer(request, self._answer(request.path), status=self.status)

    def http3(self, connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.respond(stream, 200, self._answer(fields[b":path"].decode()))

    @contextmanager
    def serve(self, version: str) -> Iterator[int]:
        """Its port."""
        if version == "h3":
            with QuicServer({b"/dns-query": self.http3}) as server:
                yield server.port
            return
        script = Http2Server(self.http2) if version == "h2" else answers(body=self.http1)
        alpn = ["h2"] if version == "h2" else ["http/1.1"]
        with scripted_peer(script, tls=certificates().server_context(alpn=alpn)) as peer:
            yield peer.port
