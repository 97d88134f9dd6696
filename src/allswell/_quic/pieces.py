"""Stream data that arrived out of order: kept in pieces, and counted.

aioquic keeps such data in a buffer that begins at the first gap. So one byte at the end of a window takes as much
memory as the window. Here a gap takes nothing, and the data are counted for the whole connection. Memory is limited by
what the peer really sends, and by ``_MOST_HELD``. (Data in order go to the application, and the windows limit them.)
"""

from __future__ import annotations

from bisect import bisect_right

from aioquic.quic.connection import QuicConnectionError
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicStreamFrame
from aioquic.quic.stream import FinalSizeError, QuicStreamReceiver

from allswell._quic.interface import StreamDataReceived, StreamReset

#: How many bytes a connection may hold for all of its streams together; one whole window, if that is more. A network
#: that has just lost a packet has no more than this on its way.
_MOST_HELD = 32 * 1024 * 1024
#: How many bytes a piece takes besides its data.
_PIECE = 128
#: How many pieces of one stream may be held, and for how many bytes of its window one more. (These are three packets:
#: no network loses every third.)
_PIECES, _BYTES_PER_PIECE = 256, 4096


class Held:
    """The data that one connection holds.

    :param window: the window of its streams.
    """

    __slots__ = ("_limit", "pieces", "size")

    def __init__(self, window: int) -> None:
        self.size = 0
        self.pieces = _PIECES + window // _BYTES_PER_PIECE
        self._limit = max(_MOST_HELD, window)

    def take(self, size: int, pieces: int) -> None:
        """Hold more of a stream, which is in so many pieces now.

        :raises QuicConnectionError: if that is too much (RFC 9000 §21.6).
        """
        if self.size + size > self._limit or pieces > self.pieces:
            reason = "a stream in too many pieces" if pieces > self.pieces else "too much data out of order"
            raise QuicConnectionError(QuicErrorCode.INTERNAL_ERROR, QuicFrameType.STREAM_BASE, reason)
        self.size += size


class PiecesReceiver(QuicStreamReceiver):
    """The receiving half of a stream.

    :param held: the data that its connection holds.
    """

    def __init__(self, stream_id: int | None, held: Held) -> None:
        # (Without super(): its buffer and ranges have no use here.)
        self.highest_offset = self._buffer_start = 0
        self.is_finished = self.stop_pending = False
        self._final_size: int | None = None
        self._stream_id = stream_id
        self._stop_error_code: int | None = None
        self._held = held
        self._starts: list[int] = []  # of the pieces, in order; no two overlap
        self._pieces: list[bytearray] = []

    @property
    def is_untouched(self) -> bool:
        """Whether nothing has come yet."""
        return self.highest_offset == 0 and self._final_size is None

    @property
    def is_apart(self) -> bool:
        """Whether there are data out of order, or the end is known. (If not, data in order make an event at once.)"""
        return self.highest_offset != self._buffer_start or self._final_size is not None

    def take_whole(self, data: bytes) -> StreamDataReceived:
        """Take all of the stream at once. It is untouched."""
        self._buffer_start = self.highest_offset = self._final_size = len(data)
        self.is_finished = True
        assert self._stream_id is not None
        return StreamDataReceived(self._stream_id, data, True)

    # Its events are ours. aioquic only puts them into the connection's queue.

    def handle_frame(self, frame: QuicStreamFrame) -> StreamDataReceived | None:  # type: ignore[override]  # see above
        data, fin = frame.data, frame.fin
        end = frame.offset + len(data)
        in_order = frame.offset == self._buffer_start and not self._starts
        if in_order and data and end >= self.highest_offset and self._final_size is None:
            # Nearly all frames are like this. Nothing is kept.
            self._buffer_start = self.highest_offset = end
            if fin:
                self._final_size, self.is_finished = end, True
            assert self._stream_id is not None
            return StreamDataReceived(self._stream_id, data, fin)
        final = end if fin and self._final_size is None else self._final_size
        if final is not None and (end > final or self.highest_offset > final or (fin and end != final)):
            raise FinalSizeError("the final size changes, or there are data beyond it")  # RFC 9000 §4.5
        self._final_size = final
        self.highest_offset = max(self.highest_offset, end)
        if self.is_finished:
            return None
        self._keep(frame.offset, data)
        data = self._take()
        self.is_finished = self._buffer_start == final
        if not data and not self.is_finished:
            return None
        assert self._stream_id is not None
        return StreamDataReceived(self._stream_id, data, self.is_finished)

    def handle_reset(  # type: ignore[override]  # see above
        self, *, final_size: int, error_code: int = QuicErrorCode.NO_ERROR
    ) -> StreamReset | None:
        event = super().handle_reset(final_size=final_size, error_code=error_code)
        if self.is_finished:
            self._drop(len(self._starts))
        return None if event is None else StreamReset(event.stream_id, error_code)

    def _keep(self, start: int, data: bytes) -> None:
        """Keep the new part of these data."""
        starts, pieces = self._starts, self._pieces
        index = bisect_right(starts, start)
        known = starts[index - 1] + len(pieces[index - 1]) if index else self._buffer_start
        if known > start:
            start, data = known, data[known - start :]
        while data:
            room = starts[index] - start if index < len(starts) else len(data)
            new = data[:room]
            if new and index and starts[index - 1] + len(pieces[index - 1]) == start:
                self._held.take(len(new), len(starts))
                pieces[index - 1] += new
            elif new:
                self._held.take(len(new) + _PIECE, len(starts) + 1)
                starts.insert(index, start)
                pieces.insert(index, bytearray(new))
                index += 1
            if len(data) <= room:
                return
            skipped = room + len(pieces[index])  # the part that is there already
            start, data = start + skipped, data[skipped:]
            index += 1

    def _take(self) -> bytes:
        """Return the data that are in order now."""
        count, end = 0, self._buffer_start
        while count < len(self._starts) and self._starts[count] == end:
            end += len(self._pieces[count])
            count += 1
        self._buffer_start = end
        return self._drop(count)

    def _drop(self, count: int) -> bytes:
        data = b"".join(self._pieces[:count])
        del self._starts[:count], self._pieces[:count]
        self._held.size -= len(data) + count * _PIECE
        return data
