"""What happens in a pool, as its observers are told of it (`_observers.py`): values, and nothing that could be changed.

A request and a connection have a number each, which no other one of the process has. A connection has its number from
the moment when it is begun to be made. A request is told of until it is answered or has failed. What the pool requests
for itself (tunnels through proxies, lookups over HTTPS) is a phase of a connection's making, and no request here.

The order of what is told, where * is any number of times:

- of a request: RequestBegan; (RequestWaits or nothing, RequestSent, RequestSentBack) *; RequestAnswered or
  RequestFailed.
- of a connection: DialBegan; PhaseEnded *; DialFailed or ConnectionOpened; ConnectionUsed *; ConnectionEnded.
- of one that lost a race, when another was made sooner: ConnectionOpened, ConnectionEnded.
"""

from __future__ import annotations

from itertools import count
from typing import Literal, NamedTuple

from allswell._errors import Phase
from allswell._messages import RequestHead
from allswell._report import ConnectionEnd

#: A request's, or a connection's.
next_number = count(1).__next__

#: Host and port, or the path of a Unix socket.
Peer = tuple[str, int] | str


def address(peer: Peer) -> str:
    """As it is written: ``"192.0.2.1:443"``, ``"[::1]:443"``."""
    if isinstance(peer, str):
        return peer
    host, port = peer
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Place(NamedTuple):
    """Where a request or a connection goes.

    :ivar label: the origin, and the proxies on the way, as errors and reports name it.
    :ivar scheme: ``"http"`` or ``"https"``; of a proxy, its own.
    :ivar host: a host name, or an IP address without brackets.
    """

    label: str
    scheme: str
    host: str
    port: int


class RequestBegan(NamedTuple):
    """The caller has called. It is told in the caller's task.

    :ivar head: what will be sent. An observer may add fields to its ``headers``, and change nothing else.
    """

    request: int
    to: Place
    head: RequestHead


class RequestWaits(NamedTuple):
    """No connection has room for it: it waits for one, which may have to be made."""

    request: int


class RequestSent(NamedTuple):
    """It goes out on a connection: an attempt begins.

    :ivar peer: what the connection is connected to, where that is known.
    """

    request: int
    connection: int
    http_version: str
    peer: Peer | None


class RequestSentBack(NamedTuple):
    """An attempt has failed, and was no answer. Another one may follow. See :class:`Attempt`.

    :ivar cause: the class of the error, or the status code of the answer.
    :ivar http_version: empty if there was no connection.
    """

    request: int
    why: str
    cause: str
    processed: Literal["no", "perhaps", "declined"]
    http_version: str


class RequestAnswered(NamedTuple):
    """The head of its response has come. (The body comes as the caller reads it.)"""

    request: int
    status: int
    http_version: str


class RequestFailed(NamedTuple):
    """There will be no response.

    :ivar error: what the caller gets. It is no ``Exception`` if the caller was cancelled.
    """

    request: int
    error: BaseException


class DialBegan(NamedTuple):
    """A connection is being made.

    :ivar request: the one that caused it, if it is told of.
    """

    connection: int
    to: Place
    request: int | None


class PhaseEnded(NamedTuple):
    """A phase of a connection's making is over. Phases may overlap: what is raced, and what is looked up meanwhile.

    :ivar phase: ``"dns"`` a lookup, ``"tcp"`` the connect of one address, ``"tls"``, ``"quic"``, ``"proxy"`` a tunnel.
    :ivar subject: the host that was looked up (``"example.org HTTPS"``: its HTTPS records), the address that was
        connected to, the name in the certificate, or the proxy.
    :ivar began: when, in seconds of :func:`time.monotonic`.
    :ivar seconds: how long it took.
    :ivar error: why it failed. It is no ``Exception`` if it was called off, because it was not needed any more.
    :ivar found: the addresses that a lookup has found.
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

    :ivar error: why. It is no ``Exception`` if the event loop ends.
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
    """Its first exchange has begun, or its last one has ended. The debug log is not told.

    :ivar active: whether any is under way.
    """

    connection: int
    active: bool


class ConnectionEnded(NamedTuple):
    """It is closed.

    :ivar end: how.
    :ivar error: what broke it, or what the server left with; ``None`` if it was neither.
    """

    connection: int
    end: ConnectionEnd
    error: BaseException | None


RequestEvent = RequestBegan | RequestWaits | RequestSent | RequestSentBack | RequestAnswered | RequestFailed
DialEvent = DialBegan | PhaseEnded | DialFailed
LifeEvent = ConnectionOpened | ConnectionUsed | ConnectionEnded
Event = RequestEvent | DialEvent | LifeEvent
