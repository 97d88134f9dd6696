"""A server's frames about origins: ORIGIN (RFC 8336, RFC 9412) and ALTSVC (RFC 7838 §4).

HTTP/2 and HTTP/3 frame them differently, but the payload of ORIGIN is the same. HTTP/3 has no ALTSVC.
"""

from __future__ import annotations

import re

from allswell._backends.interface import AlternativeOffered, OriginsNamed

#: Their frame types, in both versions.
ALTSVC, ORIGIN = 0xA, 0xC

#: RFC 6454 §6.2, as far as it matters here: origins of https with a name (of 253 octets at most).
_ORIGIN = re.compile(rb"https://([a-z0-9._-]{1,253})(?::([1-9][0-9]{0,4}))?", re.IGNORECASE)


def announcement(
    kind: int, flags: int, stream: int, payload: bytes, *, open_: bool
) -> OriginsNamed | AlternativeOffered | None:
    """The event of such a frame of HTTP/2; ``None`` if the frame is to be ignored.

    :param open_: whether the stream is one of our open ones.
    :raises ValueError: if the frame is cut short.
    """
    if kind == ORIGIN:
        return named_origins(payload) if stream == 0 and not flags & 0xF else None  # RFC 8336 App. A
    end = 2 + int.from_bytes(payload[:2], "big")
    if len(payload) < end:
        raise ValueError("an ALTSVC frame that is cut short")
    text, field = payload[2:end], payload[end:]
    # RFC 7838 §4: on stream 0 it names an origin, and on others it is about the stream's. Otherwise it is ignored.
    if not text:
        return AlternativeOffered(stream, "", field) if open_ else None
    origin = _origin(text)
    return AlternativeOffered(0, origin, field) if stream == 0 and origin is not None else None


def named_origins(payload: bytes) -> OriginsNamed:
    """The origins of an ORIGIN frame. Other entries are skipped (RFC 8336 App. A).

    :raises ValueError: if the last entry is cut short.
    """
    found = []
    position = 0
    while position < len(payload):
        start = position + 2
        position = start + int.from_bytes(payload[position:start], "big")
        if position > len(payload):
            raise ValueError("an Origin-Entry that is cut short")
        origin = _origin(payload[start:position])
        if origin is not None:
            found.append(origin)
    return OriginsNamed(found)


def _origin(text: bytes) -> str | None:
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return None
    host, port = match.groups()
    suffix = "" if port is None or int(port) == 443 else f":{int(port)}"
    return f"https://{host.decode('ascii').lower()}{suffix}"
