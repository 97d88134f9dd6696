"""Heads of requests and responses, as every version of HTTP shares them."""

from __future__ import annotations

from dataclasses import dataclass, field

Field = tuple[bytes, bytes]
Headers = list[Field]

#: Fields as httpx2 has them: each with the name, the name in lower case, and the value.
LoweredHeaders = list[tuple[bytes, bytes, bytes]]

#: RFC 9110 §9.2.2: sending one of these twice means what sending it once does.
IDEMPOTENT_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE", b"QUERY"})

#: RFC 9110 §9.2.1: these ask for nothing to change (the only ones that early data may carry).
SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"QUERY"})


@dataclass(slots=True)
class RequestHead:
    """The control data and header section of a request (RFC 9110 §6.2, §6.3).

    :ivar authority: ``host`` or ``host:port``; without the port if that is the scheme's default.
    :ivar target: origin-form (``/path?query``), absolute-form to a proxy, ``*``, or the authority for CONNECT.
    :ivar headers: in the caller's order and case; ``Host`` included. HTTP/2 and HTTP/3 turn it into ``:authority``.
    :ivar protocol: the ``:protocol`` of an extended CONNECT (RFC 8441, RFC 9220), else ``None``.
    """

    method: bytes
    scheme: bytes
    authority: bytes
    target: bytes
    headers: Headers
    protocol: bytes | None = None

    @property
    def origin(self) -> str:
        """``"https://example.org"``; with the port if that is not the default."""
        return f"{self.scheme.decode('ascii', 'replace')}://{self.authority.decode('ascii', 'replace')}"


@dataclass(slots=True)
class ResponseHead:
    """The control data and header section of a response, informational (1xx) or final.

    :ivar status: the status code.
    :ivar headers: pairs of name and value, in bytes, in the order in which they came.
    :ivar http_version: ``b"HTTP/1.1"``, ``b"HTTP/2"`` or ``b"HTTP/3"`` (``b"HTTP/1.0"`` from an old server).
    :ivar reason: the reason phrase of HTTP/1.1; empty in the later versions.
    :ivar plain: for allswell's own client: the headers once more, in the form in which httpx2 keeps them. ``None`` if
        the client has to look at them, because one is not ASCII, say.
    """

    status: int
    headers: Headers
    http_version: bytes
    reason: bytes = b""
    plain: LoweredHeaders | None = field(default=None, compare=False, repr=False)


@dataclass(slots=True)
class Trailers:
    """The trailer section that followed a body (RFC 9110 §6.5); empty if there was none."""

    headers: Headers = field(default_factory=list)
