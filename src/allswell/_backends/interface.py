"""The interface of all backends: sans-IO engines that turn requests into output and input into events.

A backend is driven by one connection (`_connection/connection.py`) and never waits. What comes in (bytes for h1 and h2,
QUIC events for h3) goes through ``receive``, which returns events; what must go out is fetched with ``take_output``
(a multiplexer's backend queues its output in the multiplexer and returns ``b""``). Nothing but
:class:`~allswell._errors.LocalProtocolError` and :class:`~allswell._errors.NotProcessed` is ever raised, and those only
by ``open`` and ``send_body``; what the peer does wrong arrives as an event.

Exchanges are named by an ``int`` (the stream id in h2 and h3). Calls that name one which is over do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar, runtime_checkable

from allswell._errors import AllswellError
from allswell._messages import Headers, RequestHead, ResponseHead

#: Steps (a frame, a chunk, a line) that a backend takes in one call: about a millisecond's worth.
WORK = 100

Input_contra = TypeVar("Input_contra", contravariant=True)


@dataclass(slots=True)
class InformationalReceived:
    """A 1xx response (RFC 9110 §15.2); 101 excepted, which is final for HTTP."""

    exchange: int
    head: ResponseHead


@dataclass(slots=True)
class ResponseReceived:
    """The final response's head.

    :ivar tunnel: the exchange has become a pair of raw byte streams (101, or 2xx to CONNECT): body bytes in both
        directions are the tunnel's, and the request body stays open.
    """

    exchange: int
    head: ResponseHead
    tunnel: bool = False


@dataclass(slots=True)
class BodyReceived:
    """A piece of the response's body.

    :ivar data: where it is a view, it holds until the backend's next ``receive`` or ``go_on``.
    :ivar credit: what to pass to ``consumed`` once the application has read it (h2: padding counts too).
    """

    exchange: int
    data: bytes | memoryview
    credit: int


@dataclass(slots=True)
class DatagramReceived:
    """An HTTP datagram of this exchange came, outside of its stream (RFC 9297 §2.1)."""

    exchange: int
    payload: bytes


@dataclass(slots=True)
class ResponseCompleted:
    """The response is complete; its trailer section, if any, comes with it."""

    exchange: int
    trailers: Headers


@dataclass(slots=True)
class ExchangeFailed:
    """The exchange is over before it was complete. ``NotProcessed`` as the error permits a replay."""

    exchange: int
    error: AllswellError


@dataclass(slots=True)
class UploadRefused:
    """The peer wants no more of this exchange's request body; the response may still go on (see `_halves.py`).

    RST_STREAM after a complete response (RFC 9113 §8.1), STOP_SENDING (RFC 9114 §4.1), or in HTTP/1.1 a final response
    that announces the end of the connection (RFC 9112 §9.6).
    """

    exchange: int


@dataclass(slots=True)
class SendWindowOpened:
    """More request body may go out: on one exchange, or (``None``) on any."""

    exchange: int | None


class ConnectionEvent:
    """What is about the connection, and no exchange of its own."""

    __slots__ = ()


@dataclass(slots=True)
class CapacityChanged(ConnectionEvent):
    """``capacity()`` may answer otherwise than before, for a reason other than an exchange's end."""


@dataclass(slots=True)
class SilenceChanged(ConnectionEvent):
    """The peer has stopped answering probes, or was heard again. ``capacity()`` changes with it.

    (Only QUIC tells. TCP does not say what it sends again.)
    """

    silent: bool


@dataclass(slots=True)
class PeerLeaving(ConnectionEvent):
    """The peer takes no new exchanges on this connection; those under way that it did not name may finish.

    :ivar error: its reason, where it gave one other than NO_ERROR.
    """

    error: AllswellError | None = None


@dataclass(slots=True)
class ConnectionBroken(ConnectionEvent):
    """The peer broke the protocol, or its connection is lost: every exchange is over, the connection must be aborted.

    What the backend still wants to say (GOAWAY with the error code) is in its output.
    """

    error: AllswellError


@dataclass(slots=True)
class OriginsNamed(ConnectionEvent):
    """The peer names origins that it is ready to serve here (ORIGIN: RFC 8336, RFC 9412).

    Together with those that it named before, and the one that the connection was made for, they are its Origin Set.

    :ivar origins: ``"https://example.org"``; of https only, in lower case, without the default port.
    """

    origins: list[str]


@dataclass(slots=True)
class AlternativeOffered(ConnectionEvent):
    """The peer offers an alternative service for an origin (ALTSVC: RFC 7838 §4).

    :ivar exchange: the one whose origin it is about; 0 where ``origin`` says it.
    :ivar origin: as in :class:`OriginsNamed`.
    :ivar field: as the Alt-Svc field has it.
    """

    exchange: int
    origin: str
    field: bytes


Event = (
    InformationalReceived
    | ResponseReceived
    | BodyReceived
    | DatagramReceived
    | ResponseCompleted
    | ExchangeFailed
    | UploadRefused
    | SendWindowOpened
    | CapacityChanged
    | SilenceChanged
    | PeerLeaving
    | ConnectionBroken
    | OriginsNamed
    | AlternativeOffered
)


class BackPressure(Enum):
    """How the peer is kept from sending more than the application reads."""

    READING = "the connection is not read"
    CREDIT = "an exchange is given no credit"


class Backend(Protocol[Input_contra]):
    """One HTTP connection as a state machine: h1, h2 and h3 differ only here.

    :cvar name: the layer's name in reports: ``"h1"``, ``"h2"``, ``"h3"``.
    :cvar http_version: as a response states it: ``"HTTP/1.1"``, ``"HTTP/2"``, ``"HTTP/3"``.
    :cvar in_order: responses have no name but their order (h1), so that what belongs to none ends the connection.
    :cvar back_pressure: by not reading (h1), or by credit for each exchange (h2, h3).
    :cvar says_goodbye: what ``goodbye`` puts on the wire, for the report: ``"GOAWAY"`` or ``""``.
    :ivar kept_idle: seconds that the peer says it keeps the connection when that is idle; ``inf``: it does not say.
    :ivar must_abort: nothing can be said on this connection any more (an abandoned h1 exchange): abort it.
    """

    name: str
    http_version: str
    in_order: bool
    back_pressure: BackPressure
    says_goodbye: str
    kept_idle: float

    @property
    def must_abort(self) -> bool: ...

    def open(self, head: RequestHead, *, end: bool) -> int:
        """Begin an exchange; ``end`` when the request has no body. Only while ``capacity()`` is above 0.

        :raises LocalProtocolError: when HTTP cannot say this head. Nothing was sent; the connection lives.
        :raises NotProcessed: when the connection takes no more.
        """

    def send_body(self, exchange: int, data: bytes, *, end: bool, trailers: Headers | None = None) -> None:
        """Send a piece of the request's body, at most ``send_window`` bytes of it; ``end`` with the last.

        :raises LocalProtocolError: when it contradicts the head (Content-Length), or trailers cannot be sent.
        """

    def send_window(self, exchange: int) -> int:
        """Bytes of body that this exchange will take now (0: wait for :class:`SendWindowOpened`)."""

    def unsent(self, exchange: int) -> int:
        """Bytes of body that were accepted and that are kept here until the peer lets them go."""

    def consumed(self, exchange: int, credit: int) -> None:
        """The application has read (or dropped) a piece of body: give the peer its credit back."""

    def cancel(self, exchange: int) -> None:
        """Abandon an exchange: h2 and h3 reset the stream, h1 sets ``must_abort``. Idempotent."""

    def stop(self, exchange: int) -> None:
        """Send no more of a request whose response is complete: h2 and h3 reset the stream, h1 sets ``must_abort``.

        What has come can still be read. Nothing, where the request was sent, or the peer has stopped it.
        """

    def reprioritize(self, exchange: int, priority: bytes) -> None:
        """Tell the peer that a response has another priority now: PRIORITY_UPDATE (RFC 9218 §7).

        Nothing, where the protocol or the peer has no such frame, the response is complete, or either side has said
        GOAWAY.

        :param priority: as the Priority field has it.
        """

    def capacity(self) -> int:
        """Exchanges that may be opened now."""

    @property
    def capacity_expected(self) -> bool:
        """Whether room, of which there is none just now, is to be expected though nothing that is open ends.

        So with HTTP/3: the peer's limit counts all streams that ever were (RFC 9000 §4.6), and it raises that once it
        knows that some have ended. And in all versions where the peer allows none at all: "servers SHOULD only set a
        zero value for short durations" (RFC 9113 §6.5.2), and some grant the first streams a moment late.
        """

    @property
    def exhausted(self) -> bool:
        """Whether no exchange will ever be opened again (rather than none just now)."""

    def goodbye(self) -> None:
        """Say that we leave (GOAWAY, NO_ERROR), as the backend's last words. Idempotent."""

    def ping(self) -> bool:
        """Ask the peer for a sign of life; any input is one. ``False`` where the protocol has no such thing."""

    @property
    def unfinished(self) -> bool:
        """Whether :meth:`receive` has left some of its input for :meth:`go_on`, which must be called first."""

    def receive(self, data: Input_contra) -> list[Event]:
        """Feed input; what it means.

        No more than about :data:`WORK` of it is done, however small the pieces are that the peer has cut it into:
        others have their turn before the rest.
        """

    def go_on(self) -> list[Event]:
        """Act on input that was left over, with the same bound; what it means."""

    def receive_eof(self, why: AllswellError | None) -> list[Event]:
        """The layer below has ended: what that means for the exchanges that are open.

        :param why: ``None`` for an orderly end; else what cut it (truncation, a reset).
        """

    def take_output(self) -> bytes:
        """What must be sent now; ``b""`` when there is nothing, or when a multiplexer has it already."""


@runtime_checkable
class DatagramBackend(Protocol):
    """What a backend has besides, when HTTP datagrams can go outside of the streams (RFC 9297 §2.1): HTTP/3's."""

    def datagram_room(self, exchange: int) -> int:
        """Bytes of the largest that may be sent beside an exchange's stream; 0: none may."""

    def send_datagram(self, exchange: int, payload: bytes) -> None:
        """Send one. It may be lost; one that is larger than there is room for, or that nobody waits for, is."""
