"""What has come of a response's body, and was not read yet: pure and synchronous."""

from __future__ import annotations

from collections import deque
from io import BytesIO
from typing import Any

#: Pieces below this size are put together while they wait: each costs some 100 bytes besides what is in it, and windows
#: count only that.
_SMALL = 1024
#: For how many bytes room is reserved because a peer has announced them. Nothing is written there before they come, so
#: a false length takes addresses, and hardly any memory.
_MOST_RESERVED = 16 << 20


class _Nowhere(BytesIO):
    """It keeps nothing."""

    def write(self, data: Any, /) -> int:
        return len(data)


class ReceivedBody:
    """The pieces of one response's body that wait to be read. Or, where the rest is wanted as one, what has come of it.

    :ivar pieces: those that wait, the first one first, each with its credit.
    :ivar buffered: their bytes.
    :ivar whole: where the rest is put together as it comes; ``None`` where it is not.
    """

    __slots__ = ("buffered", "pieces", "whole")

    def __init__(self) -> None:
        self.buffered = 0
        self.pieces: deque[tuple[bytes, int]] = deque()
        self.whole: BytesIO | None = None

    def add(self, data: bytes | memoryview, credit: int) -> bool:
        """A piece has come; whether it is read already.

        :param data: holds until this returns.
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
        """The first piece, and its credit. (There must be one.)"""
        piece = self.pieces.popleft()
        self.buffered -= len(piece[0])
        return piece

    def take_all(self) -> tuple[bytes, int]:
        """All pieces as one, and their credit."""
        pieces = self.pieces
        if len(pieces) == 1:
            data, credit = pieces[0]
        else:
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
        """Write what comes from now on to where it stays, behind this start.

        Pieces that are held until they are joined would take twice the memory, and the time of twice its page faults.
        So does room that grows while other bodies grow beside it: it has to move.

        :param length: how many bytes are announced; more or fewer may come.
        """
        self.whole = BytesIO(bytes(min(length, _MOST_RESERVED)))
        self.whole.write(start)

    def collected(self) -> bytes:
        """All that was collected; it collects no more."""
        assert self.whole is not None
        whole, self.whole = self.whole, None
        whole.truncate()
        return whole.getvalue()

    @property
    def come(self) -> int:
        """Bytes that have come and were not handed out."""
        return self.buffered if self.whole is None else self.whole.tell()
