"""What HTTP/3 knows of one exchange while it is open."""

from __future__ import annotations

from allswell._backends.http3_frames import H3_REQUEST_REJECTED, FrameReader
from allswell._errors import AllswellError, ExchangeReset, NotProcessed
from allswell._messages import Headers, RequestHead


class Http3Exchange:
    """One request and its response, on one stream."""

    __slots__ = (
        "ended",
        "expected",
        "final",
        "freed",
        "head",
        "held",
        "owed",
        "reader",
        "received",
        "touched",
        "trailers",
        "tunnel",
        "uploaded",
        "waiting",
        "with_early_data",
    )

    def __init__(self, head: RequestHead, reader: FrameReader, owed: int | None, with_early_data: bool) -> None:
        self.head = head
        self.reader = reader
        self.owed = owed  # bytes of body that our Content-Length still promises
        self.with_early_data = with_early_data
        self.held: Headers | None = None  # the request's fields, not sent yet
        self.waiting: list[tuple[bytes, bool, Headers]] = []  # a small body that waits with them
        self.uploaded = False  # our half is over
        self.touched = False  # the peer answered with anything at all
        self.final = False  # the final response's head came
        self.tunnel = False
        self.trailers: Headers | None = None
        self.ended = False  # the response is complete
        self.expected: int | None = None  # the response's Content-Length
        self.received = 0
        self.freed = 0  # credit of this stream's, saved up

    @property
    def whole(self) -> bool:
        """Whether all content that was announced has come."""
        return self.final and self.expected == self.received and self.reader.between_frames

    def reset_error(self, code: int) -> AllswellError:
        """What it means that the peer reset the stream, or wants no more of it, with this code."""
        reset = ExchangeReset(f"the server reset the exchange (0x{code:x})", code=code, by="peer")
        return self.not_processed(reset) if code == H3_REQUEST_REJECTED else reset

    def not_processed(self, cause: AllswellError) -> AllswellError:
        """What it means that the peer says so; once it has answered, nothing that it says makes that undone."""
        return cause if self.final else NotProcessed(cause, proven=True)
