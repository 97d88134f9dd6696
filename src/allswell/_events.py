"""The events of a pool that its observers get (`_observers.py`). An observer must not change them, with one exception:
it may add header fields in :class:`RequestBegan`.

Each request has a number that no other request or connection of the process has. So has each connection, from the
beginning of its dial. The events of a request end when it is answered or has failed. Requests that the pool makes for
itself (tunnels through proxies, lookups over HTTPS) have no events: they are phases of a dial.

The order of events, where * means any number of times:

- of a request: RequestBegan; (RequestWaits or nothing, RequestSent, RequestSentBack) *; RequestAnswered or
  RequestFailed.
- of a connection: DialBegan; PhaseEnded *; DialFailed or ConnectionOpened; ConnectionUsed *; ConnectionEnded.
- of a connection that lost a race, because another was made sooner: ConnectionOpened, ConnectionEnded. It has a number
  of its own.
"""

from __future__ import annotations

from itertools import count
from typing import Literal, NamedTuple

from allswell._errors import Phase
from allswell._messages import RequestHead
from allswell._report import ConnectionEnd

#: The number of a new request or connection.
next_number = count(1).__next__

#: Host and port, or the path of a Unix socket.
Peer = tuple[str, int] | str


def address(peer: Peer) -> str:
    """A peer as text: ``"192.0.2.1:443"``, ``"[::1]:443"``, or a path."""
    if isinstance(peer, str):
        return peer
    host, port = peer
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Place(NamedTuple):
    """Where a request or a connection goes.

    :ivar label: the origin and the proxies on the way, as errors and reports name them.
    :ivar scheme: ``"http"`` or ``"https"``; for a proxy, the proxy's.
    :ivar host: a host name, or an IP address without brackets.
    """

    label: str
    scheme: str
    host: str
    port: int


class RequestBegan(NamedTuple):
    """The caller has made a request. This event comes in the caller's task.

    :ivar head: the head that will be sent. An observer may add fields to its ``headers``, and must change nothing else.
    """

    request: int
    to: Place
    head: RequestHead


class RequestWaits(NamedTuple):
    """No connection has room for the request. It waits for one, and a new one may be made."""

    request: int


class RequestSent(NamedTuple):
    """The request goes out on a connection: an attempt begins.

    :ivar peer: what the connection is connected to, if that is known.
    """

    request: int
    connection: int
    http_version: str
    peer: Peer | None


class RequestSentBack(NamedTuple):
    """An attempt has failed, or its answer was not accepted. Another attempt may follow. See :class:`Attempt`.

    :ivar cause: the error, or the status code of the answer.
    :ivar http_version: empty if there was no connection.
    """

    request: int
    why: str
    cause: Exception | int
    processed: Literal["no", "perhaps", "declined"]
    http_version: str


class RequestAnswered(NamedTuple):
    """The head of the response has come. (The body comes as the caller reads it.)"""

    request: int
    status: int
    http_version: str


class RequestFailed(NamedTuple):
    """There will be no response.

    :ivar error: the exception for the caller. If the caller was cancelled, it is not an ``Exception``.
    """

    request: int
    error: BaseException


class DialBegan(NamedTuple):
    """A connection is being made.

    :ivar request: the number of the request that caused it, if that has events.
    """

    connection: int
    to: Place
    request: int | None


class PhaseEnded(NamedTuple):
    """A phase of a dial is over. Phases may overlap, because attempts race, and lookups go on meanwhile.

    :ivar phase: ``"dns"`` (a lookup), ``"tcp"`` (to one address), ``"tls"``, ``"quic"``, ``"proxy"`` (a tunnel).
    :ivar subject: the host that was looked up (``"example.org HTTPS"``: its HTTPS records), the address that was
        tried, the name in the certificate, or the proxy.
    :ivar began: when it began, in seconds of :func:`time.monotonic`.
    :ivar seconds: how long it took.
    :ivar error: why it failed; ``None`` if it did not. If the phase was cancelled because it was not needed any more,
        it is not an ``Exception``.
    :ivar found: the addresses that the lookup found.
    """

    connection: int
    phase: Phase
    subject: Peer
    began: float
    seconds: float
    error: BaseException | None
    found: tuple[str, ...] = ()


class DialFailed(NamedTuple):
    """The connection was not made.

    :ivar error: why. If the event loop ends, it is not an ``Exception``.
    """

    connection: int
    error: BaseException


class ConnectionOpened(NamedTuple):
    """A connection is open, and idle.

    :ivar layers: its stack, top to bottom: ``"tls > tcp"``.
    :ivar peer: what it is connected to: the server, the nearest proxy, a Unix socket.
    :ivar tls: the version of TLS: ``"TLSv1.3"``; empty if there is none.
    """

    connection: int
    to: Place
    http_version: str
    layers: str
    peer: Peer | None
    tls: str


class ConnectionUsed(NamedTuple):
    """The first open exchange has begun, or the last one has ended. The debug log does not get this event.

    :ivar active: whether any exchange is under way.
    """

    connection: int
    active: bool


class ConnectionEnded(NamedTuple):
    """The connection is closed.

    :ivar end: how it ended.
    :ivar error: what broke it, or the error with which the server left; ``None`` if there was neither.
    """

    connection: int
    end: ConnectionEnd
    error: BaseException | None


RequestEvent = RequestBegan | RequestWaits | RequestSent | RequestSentBack | RequestAnswered | RequestFailed
DialEvent = DialBegan | PhaseEnded | DialFailed
LifeEvent = ConnectionOpened | ConnectionUsed | ConnectionEnded
Event = RequestEvent | DialEvent | LifeEvent
