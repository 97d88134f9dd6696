"""What the HTTP/3 backend knows of one exchange while it is open."""

from __future__ import annotations

from allswell._backends.http3_frames import H3_REQUEST_REJECTED, FrameReader, error_name
from allswell._errors import AllswellError, ExchangeReset, NotProcessed
from allswell._halves import SEND_BODY, SEND_ENDED, Halves, ReceiveHalf, SendHalf
from allswell._messages import Headers, RequestHead


class Held:
    """The unsent part of a request that may not go yet.

    :ivar fields: its header section.
    :ivar pieces: of its body: the content, whether the request ends there, and with which trailers.
    :ivar size: how many bytes of content they have.
    """

    __slots__ = ("fields", "pieces", "size")

    def __init__(self, fields: Headers) -> None:
        self.fields = fields
        self.pieces: list[tuple[bytes, bool, Headers]] = []
        self.size = 0

    def add(self, data: bytes, end: bool, trailers: Headers) -> None:
        """Hold a piece of the body too."""
        self.pieces.append((data, end, trailers))
        self.size += len(data)


class Http3Exchange(Halves):
    """One request and its response, on one stream.

    :param end: the request ends with its head.
    :param owed: how many bytes its Content-Length promises.
    :ivar with_early_data: whether it was sent before the handshake was complete.
    :ivar held: what waits to be sent, as long as it may not go. (``sending`` tells what the requester has given us.)
    :ivar touched: whether the peer has answered with anything at all.
    :ivar freed: credit of this stream that was not given back yet, in bytes.
    """

    __slots__ = ("freed", "head", "held", "reader", "touched", "trailers", "with_early_data")

    def __init__(
        self, head: RequestHead, reader: FrameReader, *, end: bool, owed: int | None, with_early_data: bool
    ) -> None:
        super().__init__(SendHalf(SEND_ENDED if end else SEND_BODY, owed), ReceiveHalf(head.method))
        self.head = head
        self.reader = reader
        self.with_early_data = with_early_data
        self.held: Held | None = None
        self.touched = False
        self.trailers: Headers | None = None
        self.freed = 0

    @property
    def whole(self) -> bool:
        """Whether all content that was announced has come."""
        return self.receiving.whole and self.reader.between_frames

    def reset_error(self, code: int) -> AllswellError:
        """The error of this exchange if the peer reset its stream, or stopped ours, with this code."""
        reset = ExchangeReset(f"the server reset the HTTP/3 stream: {error_name(code)}", code=code, by="peer")
        return self.not_processed(reset) if code == H3_REQUEST_REJECTED else reset

    def not_processed(self, cause: AllswellError) -> AllswellError:
        """The error of this exchange if the peer says that it did not process it. After an answer it cannot say so."""
        return cause if self.receiving.answered else NotProcessed(cause, proven=True)
