"""What HTTP/3 knows of one exchange while it is open."""

from __future__ import annotations

from allswell._backends.http3_frames import H3_REQUEST_REJECTED, FrameReader
from allswell._errors import AllswellError, ExchangeReset, NotProcessed
from allswell._halves import SEND_BODY, SEND_ENDED, Halves, ReceiveHalf, SendHalf
from allswell._messages import Headers, RequestHead


class Http3Exchange(Halves):
    """One request and its response, on one stream.

    :param end: the request ends with its head.
    :param owed: what its Content-Length promises.
    :ivar held: the request's fields, as long as they were not sent; our half tells what was given to us.
    :ivar waiting: a small body that waits with them.
    :ivar touched: the peer answered with anything at all.
    :ivar freed: credit of this stream's, saved up.
    """

    __slots__ = ("freed", "head", "held", "reader", "touched", "trailers", "waiting", "with_early_data")

    def __init__(
        self, head: RequestHead, reader: FrameReader, *, end: bool, owed: int | None, with_early_data: bool
    ) -> None:
        super().__init__(SendHalf(SEND_ENDED if end else SEND_BODY, owed), ReceiveHalf(head.method))
        self.head = head
        self.reader = reader
        self.with_early_data = with_early_data
        self.held: Headers | None = None
        self.waiting: list[tuple[bytes, bool, Headers]] = []
        self.touched = False
        self.trailers: Headers | None = None
        self.freed = 0

    @property
    def whole(self) -> bool:
        """Whether all content that was announced has come."""
        return self.receiving.whole and self.reader.between_frames

    def reset_error(self, code: int) -> AllswellError:
        """What it means that the peer reset the stream, or wants no more of it, with this code."""
        reset = ExchangeReset(f"the server reset the exchange (0x{code:x})", code=code, by="peer")
        return self.not_processed(reset) if code == H3_REQUEST_REJECTED else reset

    def not_processed(self, cause: AllswellError) -> AllswellError:
        """What it means that the peer says so; once it has answered, nothing that it says makes that undone."""
        return cause if self.receiving.answered else NotProcessed(cause, proven=True)
