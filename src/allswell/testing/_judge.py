"""Judges how connections ended, by their events. There is one rule for each way to end badly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from allswell.testing._events import (
    Alert,
    CloseNotify,
    ConnectionClose,
    Ended,
    Event,
    ExchangeCut,
    Fin,
    GoAway,
    RequestExecuted,
    Rst,
    Said,
    Secured,
    Speaks,
    StreamReset,
    Vanished,
    Violation,
)
from allswell.testing._record import Record, waterfall

_H3_NO_ERROR = 0x100
#: NO_ERROR of QUIC, and H3_NO_ERROR.
_NO_ERRORS = (0, _H3_NO_ERROR)


def not_graceful(record: Record) -> str | None:
    """What is wrong with the ends of the client's connections, with the waterfall; ``None`` if nothing is.

    A connection without any HTTP is not judged (it lost a race to connect, say), and no connection that the origin cut,
    unless it did so because the client broke the protocol.
    """
    faults, judged = [], 0
    for number in record.connections:
        events = record.of(Event, number)
        spoken = any(isinstance(event, Speaks) for event in events)
        cut = next((at for at, event in enumerate(events) if isinstance(event, Said) and event.cut), None)
        failed = any(isinstance(event, Alert | Violation) for event in events[:cut])  # this may be why it was cut
        if failed or (spoken and cut is None):
            judged += 1
            faults += [f"connection {number}: {fault}" for fault in _ungraceful(events)]
    if not judged:
        faults.append("there is no connection to judge: the origin cut all that spoke HTTP, or none did")
    return _told("not ended gracefully", faults, record)


def _ungraceful(events: Sequence[Event]) -> Iterator[str]:
    kinds = [type(event) for event in events]
    version = next((event.version for event in events if isinstance(event, Speaks)), "")
    if Ended not in kinds:
        yield "it is still open"
    for event in events:
        if isinstance(event, ExchangeCut):
            yield f"it was ended while {event.method} {event.target} was under way"
        elif isinstance(event, Alert | Violation | Vanished):
            yield f"{event}"
    if version == "HTTP/3":
        yield from _of_quic(events)
        return
    if Rst in kinds:
        yield "RST after FIN: the client did not wait for the origin's goodbye" if Fin in kinds else "RST, and no FIN"
    if Fin not in kinds:
        return
    if Secured in kinds and CloseNotify not in kinds[: kinds.index(Fin)]:
        yield "FIN without close_notify (RFC 8446, section 6.1)"
    if version == "HTTP/2":
        yield from _of_http2(events[: kinds.index(Fin)])


def _of_http2(events: Sequence[Event]) -> Iterator[str]:
    said = [event for event in events if isinstance(event, GoAway)]
    if any(event.code for event in said):
        yield f"GOAWAY with error {said[-1].code:#x}"
    elif not said and not any(isinstance(event, Said) and event.word == "GOAWAY" for event in events):
        yield "no GOAWAY (RFC 9113, section 6.8)"


def _of_quic(events: Sequence[Event]) -> Iterator[str]:
    closes = [event for event in events if isinstance(event, ConnectionClose)]
    if closes and (closes[0].code, closes[0].application) != (_H3_NO_ERROR, True):
        yield f"{closes[0]}, and not H3_NO_ERROR of HTTP/3 (RFC 9114, section 5.2)"


def resets(record: Record) -> str | None:
    """What the client reset (connections and streams), with the waterfall; ``None`` if it reset nothing."""
    faults = []
    for event in record.events:
        failed = isinstance(event, ConnectionClose | GoAway) and event.code not in _NO_ERRORS
        if failed or isinstance(event, Rst | StreamReset):
            faults.append(f"connection {event.connection}: {event}")
    return _told("something was reset", faults, record)


def not_executed_once(record: Record, method: str | None, target: str) -> str | None:
    """How often a request was executed, with the waterfall; ``None`` if it was executed exactly once."""
    times = sum(
        event.target == target and (method is None or event.method == method) for event in record.of(RequestExecuted)
    )
    if times == 1:
        return None
    name = f"{method} {target}" if method else target
    return _told("not executed once", [f"{name} was executed {times} times"], record)


def _told(title: str, faults: Sequence[str], record: Record) -> str | None:
    if not faults:
        return None
    lines = "\n".join(f"  {fault}" for fault in faults)
    return f"{title}:\n{lines}\n\n{waterfall(record.events)}"
