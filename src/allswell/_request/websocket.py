"""A WebSocket's opening handshake (RFC 6455 §4.1), said as an extended CONNECT (RFC 8441 §5, RFC 9220 §3)."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

from allswell._messages import Headers, RequestHead

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_FOR_HTTP1 = frozenset((b"connection", b"upgrade", b"sec-websocket-key"))

#: What answers an extended CONNECT where an edge offers it, and what is behind the edge knows nothing of it: Go's
#: gorilla/websocket says 400, Express 404, file servers 405, coder/websocket 426, applications that fail 500, RFC 9220
#: §3 asks for 501, proxies say 502 for a server that hangs up. Other answers are about the session itself.
NOT_THIS_WAY = frozenset((400, 404, 405, 426, 500, 501, 502))


def as_extended_connect(head: RequestHead) -> RequestHead | None:
    """The same in HTTP/2's and HTTP/3's terms; ``None`` when it does not ask for a WebSocket."""
    wanted = _field(head.headers, b"upgrade")
    if head.method != b"GET" or wanted is None or wanted.lower() != b"websocket":
        return None
    headers = [field for field in head.headers if field[0].lower() not in _FOR_HTTP1]
    return replace(head, method=b"CONNECT", headers=headers, protocol=b"websocket")


def as_upgraded(asked: Headers, answered: Headers) -> Headers:
    """The header section of a 101 (Switching Protocols) that says what a 2xx to extended CONNECT said.

    :param asked: the header section of the Upgrade request.
    """
    digest = hashlib.sha1((_field(asked, b"sec-websocket-key") or b"") + _GUID, usedforsecurity=False).digest()
    switched = [
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", base64.b64encode(digest)),
    ]
    return switched + answered


def _field(headers: Headers, wanted: bytes) -> bytes | None:
    return next((value for name, value in headers if name.lower() == wanted), None)
