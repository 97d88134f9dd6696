"""The debug log: one line for each event of a pool. The record has its facts as fields, for loggers that write JSON.

Whether a logger is enabled is asked when something begins: a request, a dial, a connection. So a level that is set
later applies to what begins later.

No secret is logged: no header field, no body, no userinfo. Of a URL only the origin and the path are logged, not the
query. Of an exception only the type is logged, unless it is ours or the system's: its text may hold secrets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from allswell._errors import described, shown
from allswell._events import (
    ConnectionEnded,
    ConnectionOpened,
    DialBegan,
    DialFailed,
    Event,
    PhaseEnded,
    RequestAnswered,
    RequestBegan,
    RequestFailed,
    RequestSent,
    RequestSentBack,
    RequestWaits,
    address,
)
from allswell._report import LayerEnd, counted

POOL = logging.getLogger("allswell.pool")
DIAL = logging.getLogger("allswell.dial")
CONNECTION = logging.getLogger("allswell.connection")

#: The text of a record, and its fields.
_Line = tuple[str, dict[str, Any]]


def log(event: Event) -> None:
    """Write an event to its logger, if that is enabled."""
    known = _LINES.get(type(event))
    if known is None:
        return
    logger, name, line = known
    if logger.isEnabledFor(logging.DEBUG):
        text, facts = line(event)
        logger.debug("%s", text, extra={"event": name, **facts})


def _began(event: RequestBegan) -> _Line:
    method, path = shown(event.head.method), _path(event.head.target)
    text = f"request {event.request}: {method} {event.to.label}{f', {path}' if path else ''}"
    return text, {"request": event.request, "method": method, "route": event.to.label, "path": path}


def _waits(event: RequestWaits) -> _Line:
    return f"request {event.request} waits for a connection", {"request": event.request}


def _sent(event: RequestSent) -> _Line:
    text = f"request {event.request} goes out on connection {event.connection} ({event.http_version})"
    return text, {"request": event.request, "connection": event.connection, "http_version": event.http_version}


def _sent_back(event: RequestSentBack) -> _Line:
    text = f"request {event.request} was not served: {event.why} (processed: {event.processed})"
    facts = {"why": event.why, "processed": event.processed, "http_version": event.http_version}
    return text, {"request": event.request, **facts}


def _answered(event: RequestAnswered) -> _Line:
    text = f"request {event.request} is answered: {event.status}"
    return text, {"request": event.request, "status": event.status, "http_version": event.http_version}


def _failed(event: RequestFailed) -> _Line:
    told = described(event.error)
    verb = "failed" if isinstance(event.error, Exception) else "was given up"
    return f"request {event.request} {verb}: {told}", {"request": event.request, "error": told}


def _dial(event: DialBegan) -> _Line:
    cause = f", for request {event.request}" if event.request is not None else ""
    text = f"connection {event.connection}: dialling {event.to.label}{cause}"
    return text, {"connection": event.connection, "route": event.to.label, "request": event.request}


def _phase(event: PhaseEnded) -> _Line:
    subject, error = address(event.subject), event.error
    outcome = "done" if error is None else "failed" if isinstance(error, Exception) else "called off"
    text = f"connection {event.connection}: {event.phase} {subject} {outcome} in {event.seconds * 1000:.1f} ms"
    facts: dict[str, Any] = {"phase": event.phase, "subject": subject, "seconds": event.seconds, "outcome": outcome}
    if event.found:
        text += f": {', '.join(event.found)}"
        facts["found"] = list(event.found)
    if outcome == "failed":
        assert error is not None
        facts["error"] = described(error)
        text += f": {facts['error']}"
    return text, {"connection": event.connection, **facts}


def _not_made(event: DialFailed) -> _Line:
    told = described(event.error)
    return f"connection {event.connection} was not made: {told}", {"connection": event.connection, "error": told}


def _opened(event: ConnectionOpened) -> _Line:
    peer = "" if event.peer is None else address(event.peer)
    way = ", ".join(each for each in (event.layers, peer, event.tls) if each)
    text = f"connection {event.connection}: {event.http_version} to {event.to.label} is open ({way})"
    facts = {"route": event.to.label, "http_version": event.http_version, "layers": event.layers, "tls": event.tls}
    return text, {"connection": event.connection, **facts, "peer": peer}


def _ended(event: ConnectionEnded) -> _Line:
    end = event.end
    layers = "; ".join(map(_layer, end.layers))
    cut = f", {end.cut} cut" if end.cut else ""
    count = counted(end.exchanges, "exchange")
    text = f"connection {event.connection} has ended: {end.reason} ({layers}; {count}{cut})"
    facts: dict[str, Any] = {
        "route": end.route,
        "http_version": end.http_version,
        "reason": end.reason,
        "clean": end.clean,
        "exchanges": end.exchanges,
        "cut": end.cut,
        "seconds": end.seconds,
        "layers": [
            {"layer": each.layer, "said": each.said, "heard": each.heard, "outcome": each.outcome.value}
            for each in end.layers
        ],
    }
    return text, {"connection": event.connection, **facts}


def _layer(end: LayerEnd) -> str:
    words = [f"said {end.said}"] * bool(end.said) + [f"heard {end.heard}"] * bool(end.heard)
    return f"{end.layer} {end.outcome.value}" + (f", {', '.join(words)}" if words else "")


def _path(target: bytes) -> str:
    """The path of a request target in origin-form; empty for another form, because that may hold secrets."""
    return shown(target.partition(b"?")[0]) if target.startswith(b"/") else ""


_LINES: dict[type[Event], tuple[logging.Logger, str, Callable[[Any], _Line]]] = {
    RequestBegan: (POOL, "request.began", _began),
    RequestWaits: (POOL, "request.waits", _waits),
    RequestSent: (POOL, "request.sent", _sent),
    RequestSentBack: (POOL, "request.sent_back", _sent_back),
    RequestAnswered: (POOL, "request.answered", _answered),
    RequestFailed: (POOL, "request.failed", _failed),
    DialBegan: (DIAL, "dial.began", _dial),
    PhaseEnded: (DIAL, "dial.phase", _phase),
    DialFailed: (DIAL, "dial.failed", _not_made),
    ConnectionOpened: (CONNECTION, "connection.opened", _opened),
    ConnectionEnded: (CONNECTION, "connection.ended", _ended),
}
