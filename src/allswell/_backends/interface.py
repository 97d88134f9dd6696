"""The interface of all backends: engines without I/O that turn requests into output, and input into events.

One connection (`_connection/connection.py`) drives a backend. A backend never waits. Input (bytes for h1 and h2, QUIC
events for h3) goes to ``receive``, which returns events. ``take_output`` returns output. (The backend of a multiplexer
queues its output there, and returns ``b""``.) Only ``open`` and ``send_body`` raise errors, and no others than
:class:`~allswell._errors.LocalProtocolError` and :class:`~allswell._errors.NotProcessed`. The peer's errors are events.

An ``int`` names an exchange (the stream id in h2 and h3). Calls for one that is over do nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar, dataclass_transform, runtime_checkable

from allswell._errors import AllswellError
from allswell._messages import Headers, RequestHead, ResponseHead

#: How many steps (a frame, a chunk, a line) a backend takes in one call: about a millisecond's worth.
WORK = 100

Input_contra = TypeVar("Input_contra", contravariant=True)
_Kind = TypeVar("_Kind", bound="Told")


class Told:
    """An event. (For each class of its own, a dataclass would compile how to compare and to show it.)"""

    __slots__ = ()
    __match_args__: tuple[str, ...]

    def _facts(self) -> list[object]:
        return [getattr(self, name) for name in self.__match_args__]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._facts() == other._facts()

    def __repr__(self) -> str:
        facts = zip(self.__match_args__, self._facts(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={fact!r}' for name, fact in facts)})"


@dataclass_transform()
def _event(kind: type[_Kind]) -> type[_Kind]:
    return dataclass(slots=True, eq=False, repr=False)(kind)


@_event
class InformationalReceived(Told):
    """A 1xx response (RFC 9110 §15.2), but not 101, which is final for HTTP."""

    exchange: int
    head: ResponseHead


@_event
class ResponseReceived(Told):
    """The final response's head.

    :ivar tunnel: the exchange has become a pair of raw byte streams (101, or 2xx to CONNECT). Body bytes in both
        directions belong to the tunnel, and the request body stays open.
    """

    exchange: int
    head: ResponseHead
    tunnel: bool = False


@_event
class BodyReceived(Told):
    """A piece of the response's body.

    :ivar data: a view of it is valid until the backend's next ``receive`` or ``go_on``.
    :ivar credit: what to pass to ``consumed`` once the application has read it (h2: padding counts too).
    """

    exchange: int
    data: bytes | memoryview
    credit: int


@_event
class DatagramReceived(Told):
    """An HTTP datagram of this exchange has come, outside of its stream (RFC 9297 §2.1)."""

    exchange: int
    payload: bytes


@_event
class ResponseCompleted(Told):
    """The response is complete. Its trailer section, if any, comes with it."""

    exchange: int
    trailers: Headers


@_event
class ExchangeFailed(Told):
    """The exchange is over before it was complete. If the error is ``NotProcessed``, the request may be sent again."""

    exchange: int
    error: AllswellError


@_event
class UploadRefused(Told):
    """The peer wants no more of this exchange's request body. The response may still go on (see `_halves.py`).

    It said so by RST_STREAM after a complete response (RFC 9113 §8.1), STOP_SENDING (RFC 9114 §4.1), or in HTTP/1.1 a
    final response that announces the end of the connection (RFC 9112 §9.6).
    """

    exchange: int


@_event
class SendWindowOpened(Told):
    """More request body may go out: on one exchange, or (``None``) on any."""

    exchange: int | None


class ConnectionEvent(Told):
    """An event about the connection, not about one exchange."""

    __slots__ = ()


@_event
class CapacityChanged(ConnectionEvent):
    """``capacity()`` may have changed, for another reason than an exchange's end."""


@_event
class SilenceChanged(ConnectionEvent):
    """The peer has stopped answering probes, or was heard again. ``capacity()`` changes with it.

    (Only QUIC tells. TCP does not say what it sends again.)
    """

    silent: bool


@_event
class PeerLeaving(ConnectionEvent):
    """The peer takes no new exchanges on this connection. Those under way may finish, unless an event says otherwise.

    :ivar error: the peer's reason, if it is another than NO_ERROR.
    """

    error: AllswellError | None = None


@_event
class ConnectionBroken(ConnectionEvent):
    """The peer broke the protocol, or the connection is lost. All exchanges are over, and it must be aborted.

    The backend's last words (GOAWAY with the error code) are in its output.
    """

    error: AllswellError


@_event
class OriginsNamed(ConnectionEvent):
    """The peer names origins that it serves on this connection (ORIGIN: RFC 8336, RFC 9412).

    The Origin Set has these, those that it named before, and the origin that the connection was made for.

    :ivar origins: ``"https://example.org"``; only https, in lower case, without the default port.
    """

    origins: list[str]


@_event
class AlternativeOffered(ConnectionEvent):
    """The peer offers an alternative service for an origin (ALTSVC: RFC 7838 §4).

    :ivar exchange: the exchange whose origin it is about; 0 if ``origin`` names it.
    :ivar origin: as in :class:`OriginsNamed`.
    :ivar field: the value, as in an Alt-Svc field.
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
    """How a backend keeps the peer from sending more than the application reads."""

    READING = "the connection is not read"
    CREDIT = "an exchange is given no credit"


class Backend(Protocol[Input_contra]):
    """One HTTP connection as a state machine: h1, h2 and h3 differ only here.

    :cvar name: the layer's name in reports: ``"h1"``, ``"h2"``, ``"h3"``.
    :cvar http_version: ``"HTTP/1.1"``, ``"HTTP/2"`` or ``"HTTP/3"``.
    :cvar in_order: whether only their order tells responses apart (h1). Then input that belongs to none ends the
        connection.
    :cvar back_pressure: by not reading (h1), or by credit for each exchange (h2, h3).
    :cvar says_goodbye: what ``goodbye`` sends, for the report: ``"GOAWAY"`` or ``""``.
    :ivar kept_idle: how many seconds the peer says it keeps an idle connection; ``inf``: it does not say.
    :ivar must_abort: nothing more can be said on this connection (after an abandoned h1 exchange). Abort it.
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
        """Begin an exchange, with ``end`` if the request has no body. Only while ``capacity()`` is above 0.

        :raises LocalProtocolError: if HTTP cannot express this head. Nothing was sent, and the connection lives on.
        :raises NotProcessed: if the connection takes no more.
        """

    def send_body(self, exchange: int, data: bytes | memoryview, *, end: bool, trailers: Headers | None = None) -> None:
        """Send a piece of the request's body, at most ``send_window`` bytes, with ``end`` for the last piece.

        :raises LocalProtocolError: if it contradicts the head (Content-Length), or trailers cannot be sent.
        """

    def send_window(self, exchange: int) -> int:
        """How many bytes of body this exchange takes now. 0: wait for :class:`SendWindowOpened`."""

    def unsent(self, exchange: int) -> int:
        """How many bytes of body were accepted and wait here until the peer takes them."""

    def consumed(self, exchange: int, credit: int) -> bool:
        """The application has read (or dropped) a piece of body: give the peer its credit.

        Return whether there may be something to send for that.
        """

    def cancel(self, exchange: int) -> None:
        """Abandon an exchange: h2 and h3 reset the stream, h1 sets ``must_abort``. Idempotent."""

    def stop(self, exchange: int) -> None:
        """Send no more of a request whose response is complete: h2 and h3 reset the stream, h1 sets ``must_abort``.

        What has come can still be read. It does nothing if the request was sent in full, or the peer has stopped it.
        """

    def reprioritize(self, exchange: int, priority: bytes) -> None:
        """Tell the peer the new priority of a response: PRIORITY_UPDATE (RFC 9218 §7).

        It does nothing if the protocol or the peer has no such frame, if the response is complete, or after GOAWAY of
        either side.

        :param priority: the value, as in a Priority field.
        """

    def capacity(self) -> int:
        """How many exchanges may be opened now."""

    @property
    def capacity_expected(self) -> bool:
        """Whether room is expected soon, although no open exchange need end for it.

        In HTTP/3 the peer's limit counts all streams that ever were (RFC 9000 §4.6). The peer raises it once it knows
        that some have ended. In all versions room is also expected while the peer allows no exchange at all: "servers
        SHOULD only set a zero value for short durations" (RFC 9113 §6.5.2), and some grant the first streams late.
        """

    @property
    def extended_connect(self) -> bool | None:
        """Whether the peer offers extended CONNECT (RFC 8441 §3, RFC 9220 §3); ``None``: no SETTINGS yet."""

    @property
    def exhausted(self) -> bool:
        """Whether no exchange can be opened any more (and not only just now)."""

    def goodbye(self) -> None:
        """Say that we leave (GOAWAY, NO_ERROR). These are the backend's last words. Idempotent."""

    def ping(self) -> bool:
        """Send a probe. Any input answers it. Returns ``False`` if the protocol has no probes."""

    @property
    def unfinished(self) -> bool:
        """Whether :meth:`receive` has left some input for :meth:`go_on`, which must be called first."""

    def receive(self, data: Input_contra) -> list[Event]:
        """Take input, and return its events.

        It takes about :data:`WORK` steps at most, however small the peer's pieces are. Others have their turn before
        the rest.
        """

    def go_on(self) -> list[Event]:
        """Act on input that was left over, within the same limit, and return its events."""

    def receive_eof(self, why: AllswellError | None) -> list[Event]:
        """The layer below has ended. Return the events for the open exchanges.

        :param why: ``None`` for an orderly end, else the error that cut it (truncation, a reset).
        """

    def take_output(self) -> bytes | memoryview:
        """Return what must be sent now; ``b""`` if there is nothing, or if a multiplexer has it already."""


@runtime_checkable
class DatagramBackend(Protocol):
    """A backend that can send HTTP datagrams outside of the streams (RFC 9297 §2.1): HTTP/3's."""

    def datagram_room(self, exchange: int) -> int:
        """The largest datagram that may be sent beside an exchange's stream, in bytes; 0: none."""

    def send_datagram(self, exchange: int, payload: bytes) -> None:
        """Send one. It may be lost. It is dropped if it is too large, or if nobody waits for it."""
