"""A stream that we open: made in few steps, and acknowledged in one if all of it is acknowledged together."""

from __future__ import annotations

from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import QuicStream, QuicStreamSender

from allswell._quic.pieces import Held, PiecesReceiver

_ACKED = QuicDeliveryState.ACKED


class Sender(QuicStreamSender):
    """The sending half of a stream of ours."""

    def on_data_delivery(self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool) -> None:
        if (
            fin
            and delivery is _ACKED
            and start == self._buffer_start
            and stop == self._buffer_fin
            and self._reset_error_code is None
        ):
            # All that was not acknowledged before is acknowledged now. So it is with small requests.
            self._buffer_start = stop
            self._buffer.clear()
            self._acked_fin = self.is_finished = True
        else:
            super().on_data_delivery(delivery, start, stop, fin)


class OwnStream(QuicStream):
    """A stream of ours, both ways.

    :param window: how many bytes the peer may send on it.
    :param room: how many bytes the peer lets us send on it.
    :param held: the data that its connection holds.
    """

    def __init__(self, stream_id: int, window: int, room: int, held: Held) -> None:
        # (aioquic's makes a receiver, too, for which there is no use.)
        self.is_blocked = False
        self.max_stream_data_local = self.max_stream_data_local_sent = window
        self.max_stream_data_remote = room
        self.receiver = PiecesReceiver(stream_id, held)
        self.sender = Sender(stream_id, writable=True)
        self.stream_id = stream_id
