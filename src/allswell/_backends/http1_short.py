"""The short way of HTTP/1.1: a response's head that is ordinary and has come whole, read without h11.

An **ordinary** head is one of HTTP/1.1 with a status from 200 to 599. Its lines are legal, and each ends with CRLF. It
says in one way how its content is framed: by one Content-Length of digits, or as chunked, or there is none. Its
Connection field, if it has one, says ``keep-alive`` or ``close`` and nothing else. h11 reads any other head, from its
first byte. It is the judge of what HTTP/1.1 is, and of what is wrong. Tests hold the two against each other.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from allswell._fields import MAX_FIELDS, kept_idle, received_field
from allswell._messages import Field, Headers, ResponseHead

#: A reason phrase with control characters is left to h11.
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: ([ -~\x80-\xff]*))?").fullmatch

#: A Content-Length with more digits is left to h11.
_MOST_DIGITS = 18

#: Fields about framing or about the connection. What they mean is worked out for each response.
_NOTED = frozenset((b"connection", b"content-length", b"keep-alive", b"transfer-encoding"))


class Ordinary(NamedTuple):
    """A head that was read the short way.

    :ivar size: how many bytes it took, with the empty line.
    :ivar content_length: ``None`` if the content is chunked.
    :ivar close: whether the connection ends with this response.
    :ivar kept_idle: see :func:`~allswell._fields.kept_idle`; ``None``: it does not say.
    """

    head: ResponseHead
    size: int
    content_length: int | None
    close: bool
    kept_idle: float | None


class Heads:
    """Reads heads. It remembers lines, because most responses of a server have most lines in common.

    Lines may have secrets in them. So each connection has a memory of its own, which ends with it.
    """

    #: How many lines are remembered, and how long they may be.
    _MOST, _LONGEST = 64, 256

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Field, bytes]] = {}

    def read(self, data: bytes, method: bytes) -> Ordinary | None:
        """The head that the data begins with; ``None`` if it is not ordinary, or not all of it is there.

        :param method: the request's; not CONNECT.
        """
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = data[:end].split(b"\r\n")
        status_line = _STATUS_LINE(first)
        if status_line is None or len(lines) > MAX_FIELDS:
            return None
        headers: Headers = []
        length: int | None = None
        chunked = connection = close = False
        idle: float | None = None
        known = self._known
        for line in lines:
            found = known.get(line) or self._learnt(line)
            if found is None:
                return None
            field, noted = found
            headers.append(field)
            if not noted:
                continue
            value = field[1]
            if noted == b"content-length":
                if length is not None or not value.isdigit() or len(value) > _MOST_DIGITS:
                    return None
                length = int(value)
            elif noted == b"transfer-encoding":
                if chunked or value != b"chunked":
                    return None
                chunked = True
            elif noted == b"keep-alive":
                idle = kept_idle(value)
            else:
                option = value.lower()
                if connection or option not in (b"keep-alive", b"close"):
                    return None
                connection, close = True, option == b"close"
        status = int(status_line[1])
        if chunked and length is not None:
            return None
        if status == 204 and (length or chunked):
            return None  # RFC 9110 §8.6, RFC 9112 §6.1: a 204 must not say so
        if method == b"HEAD" or status in (204, 304):
            length = 0  # RFC 9112 §6.3: no content follows, whatever the fields say
        elif length is None and not chunked:
            return None
        head = ResponseHead(status, headers, b"HTTP/1.1", status_line[2] or b"")
        return Ordinary(head, end + 4, length, close, idle)

    def _learnt(self, line: bytes) -> tuple[Field, bytes] | None:
        """The field of a line, and its name in lower case if that is in :data:`_NOTED`. Both are remembered.

        ``None`` if the line is not a field.
        """
        field = received_field(line)
        if field is None:
            return None
        lower = field[0].lower()
        found = field, lower if lower in _NOTED else b""
        if len(line) <= self._LONGEST:
            if len(self._known) >= self._MOST:
                self._known.clear()
            self._known[line] = found
        return found
