"""The HTTP tunnel filter: CONNECT to a proxy over HTTP/1.1 (RFC 9110 §9.3.6, RFC 9112 §3.2.3), then bytes as they come.

Once the proxy has answered 2xx, everything after the head belongs to the tunnel, whatever Content-Length says. Any
other answer is a refusal. The start of its body is read too, to show it to the user. A tunnel has no goodbye of its
own: it ends with the connection that carries it.
"""

from __future__ import annotations

import re
from base64 import b64encode

from allswell._deadline import Deadline
from allswell._errors import ConnectFailed, LocalProtocolError, ProxyRefused, TransportError, shown
from allswell._fields import Names, header_section, received_field
from allswell._filters.interface import ByteStream
from allswell._filters.tunnel import TunnelFilter
from allswell._messages import Headers, RequestHead

#: How many bytes of a refusal's body are shown, and how many seconds to wait for them.
BODY_SHOWN = 1024
BODY_PATIENCE = 0.5

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: ([\t\x20-\x7e\x80-\xff]*))?")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[^\r\n]*\r\n")


def basic_auth(auth: tuple[bytes, bytes]) -> bytes:
    """The value of Proxy-Authorization (RFC 7617 §2)."""
    return b"Basic " + b64encode(b":".join(auth))


def refused(proxy: str, status: int, reason: bytes, headers: Headers, body: bytes) -> ProxyRefused:
    """The error for an answer other than 2xx."""
    words, begins = f"{status} {shown(reason)}".strip(), shown(body)
    message = f"the proxy {proxy} refused the tunnel: {words}" + (f" ({begins})" if begins else "")
    return ProxyRefused(message, status=status, headers=headers, body=body[:BODY_SHOWN])


class HttpConnectFilter(TunnelFilter):
    """A tunnel through an HTTP/1.1 proxy.

    :param lower: the connection to the proxy.
    :param proxy: the proxy's name in errors (without credentials).
    :param target: the host and port to connect to, as an authority.
    :param headers: header fields for the proxy, such as credentials.
    :param max_head: the largest head of the proxy's answer that is accepted, in bytes.
    """

    name = "http-connect"

    def __init__(self, lower: ByteStream, *, proxy: str, target: bytes, headers: Headers, max_head: int) -> None:
        super().__init__(lower, proxy)
        self._target = target
        self._headers = headers
        self._max_head = max_head

    async def connect(self) -> None:
        try:
            self._lower.transmit(self._request())
            await self._lower.flush()
            status, reason, headers = await self._answer()
            if not 200 <= status < 300:
                raise refused(self._proxy, status, reason, headers, await self._body(headers))
        except TransportError as error:
            raise self._failed(str(error)) from error
        self._ready = True

    def _request(self) -> bytes:
        head = RequestHead(b"CONNECT", b"http", self._target, self._target, self._headers)
        try:
            fields = header_section(head, self._target).fields
        except LocalProtocolError as error:
            message = f"cannot ask the proxy {self._proxy} for a tunnel: {error}"
            raise ConnectFailed(message, phase="proxy", by="us") from error
        lines = [b"CONNECT %s HTTP/1.1" % self._target, *(b"%s: %s" % field for field in fields)]
        return b"\r\n".join([*lines, b"", b""])

    async def _answer(self) -> tuple[int, bytes, Headers]:
        """The final answer's status, reason and header section. What follows it stays in ``_received``."""
        size = 0
        while True:
            head = await self._head(self._max_head - size)
            size += len(head)
            first, *lines = head.split(b"\n")
            match = _STATUS.fullmatch(first.removesuffix(b"\r"))
            if match is None:
                raise self._failed("it does not speak HTTP/1.1")
            headers: Headers = []
            names = Names()
            for line in lines[:-2]:
                found = received_field(line.removesuffix(b"\r"), names)
                if found is None:
                    raise self._failed("it sent a malformed header section")
                headers.append(found[0])
            status = int(match[1])
            if status >= 200:
                return status, match[2] or b"", headers
            if status == 101:
                raise self._failed("it switched protocols, which was not asked for")

    async def _head(self, limit: int) -> bytes:
        """A head with its empty line."""
        received, searched = self._received, 0
        while True:
            # RFC 9112 §2.2: a recipient may take a single LF for the end of a line.
            ends = [end + len(mark) for mark in (b"\r\n\r\n", b"\n\n") if (end := received.find(mark, searched)) >= 0]
            if ends and min(ends) <= limit:
                head = bytes(received[: min(ends)])
                del received[: min(ends)]
                return head
            if len(received) > limit:
                raise self._failed(f"the head of its answer exceeds {self._max_head} bytes")
            if len(received) >= 5 and not received.startswith(b"HTTP/"):
                raise self._failed("it does not speak HTTP/1.1")
            searched = max(0, len(received) - 3)
            if not await self._receive():
                raise self._failed("it ended the connection without an answer")

    async def _body(self, headers: Headers) -> bytes:
        """The start of a refusal's body, as far as it comes soon."""
        fields = {name.lower(): value.lower() for name, value in headers}
        chunked = fields.get(b"transfer-encoding", b"").endswith(b"chunked")
        length = fields.get(b"content-length", b"")
        wanted = min(BODY_SHOWN, int(length)) if length.isdigit() and len(length) < 10 else BODY_SHOWN
        try:
            with Deadline.after(BODY_PATIENCE).scope():
                while len(self._received) < wanted and (not chunked or b"\r\n0\r\n" not in self._received):
                    if not await self._receive():
                        break
        except TransportError:
            pass  # the refusal is reported, not how its body ended
        body = bytes(self._received)
        if chunked and (size := _CHUNK.match(body)) is not None:
            body = body[size.end() : size.end() + int(size[1], 16)]
        return body[:wanted]
