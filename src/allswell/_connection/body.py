"""The part of a response's body that has come and was not read yet. It is synchronous, and does no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO
from typing import Any

#: Pieces below this size are joined while they wait. Each piece takes some 100 bytes besides its content, and windows
#: count only the content.
_SMALL = 1024
#: At most so many bytes are reserved for a body whose length is announced. They are not written before the content
#: comes. So if the peer announces too much, that takes addresses, but hardly any memory.
_MOST_RESERVED = 16 << 20
#: How many bytes of room may be cleared. To clear more takes time; and also memory, once malloc reuses some.
_MOST_CLEARED = 1 << 20

#: glibc gives the memory at the end of its heap back to the system when that is more than twice the largest block that
#: was freed so far, of those up to 32 MiB. Four bodies of 10 MB that are freed together are more than that. To take
#: these pages anew for the next four took a fifth of a download's CPU time. So such a block is freed once. (Nothing is
#: written to it, so it takes no memory.)
_LARGEST_BLOCK = (32 << 20) - (64 << 10)


@cache
def _uncleared() -> Callable[[int], bytes] | None:
    """What makes room in which any bytes may lie; ``None`` if this Python has no such function."""
    try:
        from ctypes import PYFUNCTYPE, c_ssize_t, c_void_p, py_object, pythonapi  # late: few programs have long bodies

        make = PYFUNCTYPE(py_object, c_void_p, c_ssize_t)(("PyBytes_FromStringAndSize", pythonapi))
    except (ImportError, AttributeError):
        return None
    with suppress(MemoryError):  # the program may have less room
        make(None, _LARGEST_BLOCK)
    return lambda size: make(None, size)


def _reserved(size: int) -> BytesIO:
    """Room for so many bytes, or for some of them, to be written from the start on."""
    if size > _MOST_CLEARED:
        uncleared = _uncleared()
        if uncleared is not None:
            return BytesIO(uncleared(size))
        size = _MOST_CLEARED
    return BytesIO(bytes(size))


class _Nowhere(BytesIO):
    """A file that drops what is written."""

    def write(self, data: Any, /) -> int:
        return len(data)


class ReceivedBody:
    """The pieces of one response's body that wait to be read. If the caller wants the rest as one, that rest so far.

    :ivar pieces: the pieces that wait, in order, each with its credit.
    :ivar buffered: how many bytes they have.
    :ivar whole: the buffer for the rest, if the caller wants it as one; else ``None``.
    """

    __slots__ = ("buffered", "pieces", "whole")

    def __init__(self) -> None:
        self.buffered = 0
        self.pieces: deque[tuple[bytes, int]] = deque()
        self.whole: BytesIO | None = None

    def add(self, data: bytes | memoryview, credit: int) -> bool:
        """A piece has come. Return whether it counts as read already.

        :param data: valid until this returns.
        """
        if self.whole is not None:
            self.whole.write(data)
            return True
        pieces = self.pieces
        if pieces and len(data) < _SMALL and len(pieces[-1][0]) < _SMALL:
            before, freed = pieces[-1]
            pieces[-1] = (before + data, freed + credit)
        else:
            pieces.append((data if type(data) is bytes else bytes(data), credit))
        self.buffered += len(data)
        return False

    def take(self) -> tuple[bytes, int]:
        """Take the first piece. Return it and its credit. (There must be one.)"""
        piece = self.pieces.popleft()
        self.buffered -= len(piece[0])
        return piece

    def take_all(self) -> tuple[bytes, int]:
        """Take all pieces. Return their content and their credit."""
        pieces = self.pieces
        if len(pieces) == 1:
            self.buffered = 0
            return pieces.popleft()
        data, credit = b"".join(piece for piece, _ in pieces), sum(credit for _, credit in pieces)
        self.clear()
        return data, credit

    def clear(self) -> None:
        """Drop what waits."""
        self.pieces.clear()
        self.buffered = 0

    def drop(self) -> int:
        """Drop what waits, and what still comes. Return the credit of what waited."""
        credit = sum(credit for _, credit in self.pieces)
        self.clear()
        self.whole = _Nowhere()
        return credit

    def collect(self, start: bytes, length: int) -> None:
        """Write what comes from now on to one buffer, after this start.

        Pieces that are kept and joined at the end would take twice the memory, and twice the page faults. So would a
        buffer that grows while those of other bodies grow, because it would be moved. So its size is reserved.

        :param length: how many bytes are announced. More or fewer may come.
        """
        self.whole = _reserved(min(length, _MOST_RESERVED))
        self.whole.write(start)

    def collected(self) -> bytes:
        """Stop collecting. Return all that was collected."""
        assert self.whole is not None
        whole, self.whole = self.whole, None
        whole.truncate()
        return whole.getvalue()

    @property
    def come(self) -> int:
        """How many bytes have come and were not returned yet."""
        return self.buffered if self.whole is None else self.whole.tell()
