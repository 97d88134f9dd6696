"""Test how clients end connections: a scripted origin that sees it on the wire, and a mock with the same methods.

The origin works with any HTTP client, the mock with those that take a transport of httpx2. See the how-to "Test and
mock".
"""

from allswell.testing._events import (
    Alert,
    CloseNotify,
    Connected,
    ConnectionClose,
    Ended,
    Event,
    ExchangeCut,
    Fin,
    GoAway,
    RequestExecuted,
    RequestReceived,
    RequestRefused,
    ResponseSent,
    Rst,
    Said,
    Secured,
    Speaks,
    StreamReset,
    Vanished,
    Violation,
)
from allswell.testing._mock import MockOrigin
from allswell.testing._origin import Origin
from allswell.testing._record import Record
from allswell.testing._script import Request, Response

__all__ = [
    "Alert",
    "CloseNotify",
    "Connected",
    "ConnectionClose",
    "Ended",
    "Event",
    "ExchangeCut",
    "Fin",
    "GoAway",
    "MockOrigin",
    "Origin",
    "Record",
    "Request",
    "RequestExecuted",
    "RequestReceived",
    "RequestRefused",
    "Response",
    "ResponseSent",
    "Rst",
    "Said",
    "Secured",
    "Speaks",
    "StreamReset",
    "Vanished",
    "Violation",
]
