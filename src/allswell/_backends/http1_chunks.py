"""The chunked coding of a response's content (RFC 9112 §7.1), as servers write it. h11 reads all that is unusual.

h11 takes 17 µs for a chunk, however small. So plain chunks (digits, CRLF, data, CRLF) do not pass through it, and
neither does a last chunk without a trailer section. If anything else comes (extensions, blanks, trailers, errors), h11
reads from there on. It begins in the state between two chunks, as if it had read all that was before.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import h11

_PLAIN = re.compile(rb"([0-9A-Fa-f]{1,20})\r\n")
#: The beginning of a plain chunk's first line, or of the last chunk without trailers.
_BEGUN = re.compile(rb"[0-9A-Fa-f]{0,20}\r?|0{1,20}\r\n\r?")
_LAST = re.compile(rb"0{1,20}\r\n\r\n")
#: All that these patterns match is shorter than this, in bytes.
_LONGEST = 25


class MalformedChunk(Exception):
    """A chunk does not end where it should."""


class Chunks:
    """Reads the chunks of one response.

    :param judge: makes an h11 connection that has read the response's head.
    :ivar judged: the h11 connection, once it reads the rest.
    :ivar ended: the last chunk has come, without trailers.
    :ivar rest: input that was not taken: for the next call, for ``judged``, or for the next response.
    """

    __slots__ = ("_begun", "_judge", "_left", "ended", "judged", "rest")

    def __init__(self, judge: Callable[[], h11.Connection]) -> None:
        self._judge = judge
        self._begun = b""  # the beginning of a line whose rest has not come
        self._left = 0  # how many bytes of a chunk are still to come, its CRLF included
        self.judged: h11.Connection | None = None
        self.ended = False
        self.rest = memoryview(b"")

    def take(self, data: memoryview, pieces: list[memoryview], work: int) -> None:
        """Take a limited number of chunks.

        :param pieces: their content is added here, as views of the data.
        :param work: how many chunks to take at most.
        :raises MalformedChunk: when one does not end where it should.
        """
        if self._begun:
            data, self._begun = memoryview(self._begun + data), b""
        position, end = 0, len(data)
        if self._left:
            position = self._go_on(data, pieces)
        plain = _PLAIN.match
        while not self._left and position < end and work > 0:
            work -= 1
            found = plain(data, position)
            size = int(found[1], 16) if found is not None else 0
            if found is not None and size:
                start = found.end()
                position = start + size + 2
                if position <= end:
                    pieces.append(data[start : position - 2])
                    if data[position - 2] != 13 or data[position - 1] != 10:
                        raise _no_end(data[position - 2 : position])
                else:
                    self._left = size + 2
                    position = start + self._go_on(data[start:], pieces)
            elif (last := _LAST.match(data, position)) is not None:
                self.ended = True
                position = last.end()
                break
            elif end - position < _LONGEST and _BEGUN.fullmatch(data, position) is not None:
                self._begun = bytes(data[position:])
                position = end
            else:
                self.judged = self._judge()
                break
        self.rest = data[position:]

    def _go_on(self, data: memoryview, pieces: list[memoryview]) -> int:
        """Take more of a chunk that has begun. Return how much was taken."""
        left, taken = self._left, 0
        if left > 2:
            piece = data[: left - 2]
            if piece:
                pieces.append(piece)
            taken = len(piece)
            left -= taken
        if left <= 2:
            footer = data[taken : taken + left]
            if footer != b"\r\n"[2 - left :][: len(footer)]:
                raise _no_end(footer)
            taken += len(footer)
            left -= len(footer)
        self._left = left
        return taken


def _no_end(footer: memoryview) -> MalformedChunk:
    return MalformedChunk(f"malformed chunk footer: {bytes(footer)!r}")
