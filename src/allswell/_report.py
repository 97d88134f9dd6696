"""How connections ended: what each layer said and heard, the outcome, and how long it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """How one layer, or one connection as a whole, ended."""

    CLEAN = "clean"
    """We said goodbye and the peer answered, or no answer was due."""
    PEER_FIRST = "peer-first"
    """The peer said goodbye first, and we answered."""
    TIMED_OUT = "timed-out"
    """We said goodbye, and the peer did not answer in time."""
    ABORTED = "aborted"
    """It ended without a goodbye: we aborted it, or the peer reset it."""
    SKIPPED = "skipped"
    """There was nothing to end: the layer had not been set up, or the layer below was gone already."""


@dataclass(frozen=True, slots=True)
class LayerEnd:
    """The end of one layer of a connection.

    :ivar layer: ``"h1"``, ``"h2"``, ``"h3"``, ``"tls"``, ``"tcp"``, ``"quic"``, ``"udp"``, ``"http-connect"``, …
    :ivar said: what we sent: ``"GOAWAY"``, ``"close_notify"``, ``"FIN"``, ``"CONNECTION_CLOSE"``, ``"RST"``, or ``""``.
    :ivar heard: what the peer sent, in the same words.
    :ivar outcome: how it ended.
    :ivar seconds: how long it took, from this layer's goodbye until its end.
    """

    layer: str
    said: str
    heard: str
    outcome: Outcome
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ConnectionEnd:
    """The end of one connection, layer by layer from the top of its stack down.

    :ivar route: the origin that it led to, and the proxies on the way: ``"https://example.org"``.
    :ivar http_version: ``"HTTP/1.1"``, ``"HTTP/2"`` or ``"HTTP/3"``.
    :ivar reason: why it ended, in words.
    :ivar layers: the end of each layer, from the top down.
    :ivar exchanges: how many requests it carried in its life.
    :ivar cut: how many requests were still open when it ended.
    :ivar began: when its goodbyes began, in seconds since the close began; 0 for an end in the background.
    :ivar seconds: how long its goodbyes took.
    """

    route: str
    http_version: str
    reason: str
    layers: tuple[LayerEnd, ...]
    exchanges: int = 0
    cut: int = 0
    began: float = 0.0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether both sides ended every layer, and no request was cut."""
        ok = (Outcome.CLEAN, Outcome.PEER_FIRST, Outcome.SKIPPED)
        return self.cut == 0 and all(layer.outcome in ok for layer in self.layers)


@dataclass(frozen=True, slots=True)
class CloseReport:
    """How a pool or a client closed: each connection that was open, and how it ended.

    Printed, it is a waterfall: a line for each connection, and below it one for each layer with a bar for its time.

    :ivar connections: the ends of the connections, the first to end first.
    :ivar grace: how many seconds were allowed.
    :ivar seconds: how many seconds it took.
    """

    connections: tuple[ConnectionEnd, ...] = ()
    grace: float = 0.0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether every connection ended cleanly."""
        return all(connection.clean for connection in self.connections)

    def __str__(self) -> str:
        return waterfall(self)


def counted(number: float, noun: str) -> str:
    """``"1 connection"``, ``"2 connections"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_BAR = 30


def waterfall(report: CloseReport) -> str:
    """The report as text. Time runs from left to right, over the seconds that the close took."""
    verdict = "clean" if report.clean else "not clean"
    grace = f" of {report.grace:g} s grace" if report.grace < math.inf else ""
    count = counted(len(report.connections), "connection")
    head = f"closed {count} in {report.seconds * 1000:.1f} ms{grace}: {verdict}"
    lines = [head]
    span = max([report.seconds, *(end.began + end.seconds for end in report.connections)], default=0.0) or 1e-9
    layers = [layer for end in report.connections for layer in end.layers]
    # An arrow and a space before each word, two spaces after the longest.
    widths = [4 + max(map(len, words), default=0) for words in ([e.said for e in layers], [e.heard for e in layers])]
    for end in report.connections:
        cut = f", {end.cut} cut" if end.cut else ""
        lines.append("")
        lines.append(f"{end.http_version}  {end.route}  ({counted(end.exchanges, 'exchange')}{cut}; {end.reason})")
        lines.extend(_rows(end.layers, end.began, span, widths))
    return "\n".join(lines)


def _rows(layers: Sequence[LayerEnd], began: float, span: float, widths: Sequence[int]) -> list[str]:
    rows = []
    start = began
    for layer in layers:
        said = f"→ {layer.said}" if layer.said else ""
        heard = f"← {layer.heard}" if layer.heard else ""
        first = min(int(start / span * _BAR), _BAR - 1)
        width = max(1, round(layer.seconds / span * _BAR))
        bar = (" " * first + ("█" if layer.seconds else "▏") * width)[:_BAR].ljust(_BAR)
        rows.append(
            f"  {layer.layer:<13}{said:<{widths[0]}}{heard:<{widths[1]}}"
            f"{layer.outcome.value:<11}{layer.seconds * 1000:>8.1f} ms  │{bar}│"
        )
        start += layer.seconds
    return rows
