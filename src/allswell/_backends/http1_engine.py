"""h11 in the client's role: what reads a response that is not ordinary. It is imported when one comes.

The class of its buffer is a private name: see the canary test.
"""

from __future__ import annotations

from functools import cache

import h11
from h11._receivebuffer import ReceiveBuffer

from allswell._fields import MAX_FIELDS, TOO_MANY


def engine(method: bytes, max_header_size: int, *, upgrade: bool) -> h11.Connection:
    """An engine that expects the response to a request with this method.

    :param upgrade: the request has asked for another protocol.
    """
    made = _Engine(max_header_size)
    made.send(_asked(method if method in (b"HEAD", b"CONNECT") else b"GET", upgrade))
    made.send(h11.EndOfMessage())
    return made


@cache
def _asked(method: bytes, upgrade: bool) -> h11.Request:
    """A stand-in for the request. h11 reads the response to it as the response to any request with this method.

    :param method: ``HEAD``, ``CONNECT``, or ``GET`` for all others.
    """
    headers = [(b"Host", b"any"), *([(b"Upgrade", b"any")] if upgrade else [])]
    return h11.Request(method=method, target=b"any:1" if method == b"CONNECT" else b"/", headers=headers)


class _Lines(ReceiveBuffer):
    """h11's receive buffer. It refuses a section with more than :data:`MAX_FIELDS` fields."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        lines = super().maybe_extract_lines()
        if lines is not None and len(lines) > MAX_FIELDS + 1:  # the first may be the status line
            raise h11.RemoteProtocolError(TOO_MANY)
        return lines


class _Engine(h11.Connection):
    def __init__(self, max_header_size: int) -> None:
        super().__init__(h11.CLIENT, max_incomplete_event_size=max_header_size)
        self._receive_buffer = _Lines()
