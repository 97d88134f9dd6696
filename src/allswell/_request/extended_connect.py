"""Turns an Upgrade (RFC 9110 §7.8) into an extended CONNECT (RFC 8441, RFC 9220), and the answer back.

HTTP/1.1 has only the first, HTTP/2 and HTTP/3 only the second. Two protocols are known here: WebSocket (RFC 6455 §4.1,
RFC 8441 §5) and CONNECT-UDP (RFC 9298 §3).
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

from allswell._messages import Headers, RequestHead

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_FOR_HTTP1 = frozenset((b"connection", b"upgrade", b"sec-websocket-key"))

WEBSOCKET, CONNECT_UDP = b"websocket", b"connect-udp"
#: The values of ``:protocol`` that are known. As an Upgrade each is a GET.
PROTOCOLS = frozenset((WEBSOCKET, CONNECT_UDP))

#: These may answer an extended CONNECT if an edge offers it and the server behind does not know it. Go's
#: gorilla/websocket says 400, Express 404, file servers 405, coder/websocket 426, an application that fails 500.
#: RFC 9220 §3 asks for 501. A proxy says 502 if the server hangs up. Other answers are about the session itself.
NOT_THIS_WAY = frozenset((400, 404, 405, 426, 500, 501, 502))


def as_extended_connect(head: RequestHead) -> RequestHead | None:
    """The extended CONNECT for an Upgrade; ``None`` if it asks for no protocol that is known here."""
    wanted = (_field(head.headers, b"upgrade") or b"").lower()
    if head.method != b"GET" or wanted not in PROTOCOLS:
        return None
    headers = [field for field in head.headers if field[0].lower() not in _FOR_HTTP1]
    return replace(head, method=b"CONNECT", headers=headers, protocol=wanted)


def as_upgraded(protocol: bytes, asked: Headers, answered: Headers) -> Headers:
    """The header section of a 101 (Switching Protocols) for a 2xx answer to an extended CONNECT.

    :param asked: the header section of the Upgrade request.
    """
    switched = [(b"Upgrade", protocol), (b"Connection", b"Upgrade")]
    if protocol == WEBSOCKET:
        digest = hashlib.sha1((_field(asked, b"sec-websocket-key") or b"") + _GUID, usedforsecurity=False).digest()
        switched.append((b"Sec-WebSocket-Accept", base64.b64encode(digest)))
    return switched + answered


def _field(headers: Headers, wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name.lower() == wanted), None)
