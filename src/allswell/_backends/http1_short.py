"""The short way of HTTP/1.1: a response's head that is ordinary and has come whole, read without h11.

An **ordinary** head is one of HTTP/1.1 with a status from 200 to 599. Its lines are legal, and each ends with CRLF. It
says in one way how its content is framed: by one Content-Length of digits, or as chunked, or there is none. Its
Connection field, if it has one, says ``keep-alive`` or ``close`` and nothing else. h11 reads any other head, from its
first byte. It is the judge of what HTTP/1.1 is, and of what is wrong. Tests hold the two against each other.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

from allswell._fields import MAX_FIELDS, OF_THE_CLIENT, Names, kept_idle, received_field
from allswell._memory import remember
from allswell._messages import Field, Headers, LoweredHeaders, ResponseHead

#: A reason phrase with control characters is left to h11.
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: ([ -~\x80-\xff]*))?").fullmatch

#: A Content-Length with more digits is left to h11.
_MOST_DIGITS = 18

#: Fields about framing or about the connection.
_NOTED = frozenset((b"connection", b"content-length", b"keep-alive", b"transfer-encoding"))


#: How many lines are remembered, and how long they may be.
_MOST, _LONGEST = 64, 256

_Found = TypeVar("_Found")

#: A line that is known: its field; the same with its name in lower case; that name if it is in :data:`_NOTED`, and then
#: what it says: a number of bytes or of seconds, or whether the connection ends. Or :data:`_NOT_PLAIN` in its place.
_Known = tuple[Field, tuple[bytes, bytes, bytes], bytes, Any]

#: The line's field keeps a head from being :attr:`ResponseHead.plain`.
_NOT_PLAIN = b"-"


class Heads:
    """Reads heads. It remembers lines, because most responses of a server have most lines in common.

    Lines may have secrets in them. So each connection has a memory of its own, which ends with it.

    :ivar size: how many bytes the last head took, with the empty line.
    :ivar content_length: the last head's; ``None`` if the content is chunked.
    :ivar close: whether the connection ends with that response.
    :ivar kept_idle: see :func:`~allswell._fields.kept_idle`; ``None``: that head does not say.
    """

    def __init__(self) -> None:
        self.size = 0
        self.content_length: int | None = None
        self.close = False
        self.kept_idle: float | None = None
        self._known: dict[bytes, _Known] = {}
        self._begun: dict[bytes, tuple[int, bytes]] = {}  # the same for status lines: status and reason phrase
        self._names = Names()

    def read(self, data: bytes, method: bytes) -> ResponseHead | None:
        """The head that the data begins with; ``None`` if it is not ordinary, or not all of it is there.

        :param method: the request's; not CONNECT.
        """
        section, blank, _ = data.partition(b"\r\n\r\n")
        if not blank:
            return None
        lines = section.split(b"\r\n")
        first = lines.pop(0)
        begun = self._begun.get(first) or self._status_learnt(first)
        if begun is None or len(lines) > MAX_FIELDS:
            return None
        status, reason = begun
        headers: Headers = []
        lowered: LoweredHeaders = []
        plain: LoweredHeaders | None = lowered
        length: int | None = None
        chunked = connection = close = False
        idle: float | None = None
        known = self._known
        for line in lines:
            found = known.get(line) or self._learnt(line)
            if found is None:
                return None
            field, low, noted, said = found
            headers.append(field)
            lowered.append(low)
            if not noted:
                continue
            if noted == b"content-length":
                if length is not None:
                    return None
                length = said
            elif noted == b"transfer-encoding":
                if chunked:
                    return None
                chunked = True
            elif noted == b"keep-alive":
                idle = said
            elif noted == _NOT_PLAIN:
                plain = None
            else:
                if connection:
                    return None
                connection, close = True, said
        if chunked and length is not None:
            return None
        if status == 204 and (length or chunked):
            return None  # RFC 9110 §8.6, RFC 9112 §6.1: a 204 must not say so
        if method == b"HEAD" or status in (204, 304):
            length = 0  # RFC 9112 §6.3: no content follows, whatever the fields say
        elif length is None and not chunked:
            return None
        self.size, self.content_length, self.close, self.kept_idle = len(section) + 4, length, close, idle
        return ResponseHead(status, headers, b"HTTP/1.1", reason, plain)

    def _status_learnt(self, line: bytes) -> tuple[int, bytes] | None:
        """The status and the reason phrase of a status line, which are remembered; ``None`` if it is not ordinary."""
        match = _STATUS_LINE(line)
        if match is None:
            return None
        found = int(match[1]), match[2] or b""
        return _remembered(self._begun, line, found)

    def _learnt(self, line: bytes) -> _Known | None:
        """A line's field and what it says, which are remembered; ``None`` if no ordinary head has it."""
        found = received_field(line, self._names)
        if found is None:
            return None
        field, lower = found
        noted, said = b"", None
        if lower in _NOTED:
            noted, said = lower, _said(lower, field[1])
            if said is None or not line.isascii():
                return None
        elif lower in OF_THE_CLIENT or not line.isascii():
            noted = _NOT_PLAIN
        return _remembered(self._known, line, (field, (field[0], lower, field[1]), noted, said))


def _said(name: bytes, value: bytes) -> Any:
    """What a field in :data:`_NOTED` says; ``None`` if no ordinary head says so."""
    if name == b"content-length":
        return int(value) if value.isdigit() and len(value) <= _MOST_DIGITS else None
    if name == b"transfer-encoding":
        return True if value == b"chunked" else None
    if name == b"keep-alive":
        return kept_idle(value)
    return {b"keep-alive": False, b"close": True}.get(value.lower())


def _remembered(known: dict[bytes, _Found], line: bytes, found: _Found) -> _Found:
    return remember(known, line, found, _MOST) if len(line) <= _LONGEST else found
