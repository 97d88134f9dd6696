"""Draws how clients end, from captures: ``make pictures``, or ``python -m docs.pictures.endings`` with those installed.

Each client gets one URL of an :class:`allswell.testing.Origin`, and then ends in the way of its own. What the origin's
record says is drawn, an arrow for each word, in order: one picture for each client and version, in
docs/pictures/clients. A client that is not installed keeps the ones that it has.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from docs.pictures.draw import Picture
from tests.testing.clients import Get
from tests.testing.table import NAMES, SPOKEN, Spoken, named, there

from allswell.testing import (
    Alert,
    CloseNotify,
    ConnectionClose,
    Event,
    ExchangeCut,
    Fin,
    GoAway,
    Origin,
    Record,
    RequestReceived,
    ResponseSent,
    Rst,
    Said,
    Speaks,
    StreamReset,
    Vanished,
    Violation,
)
from allswell.testing._judge import not_graceful

FOLDER = Path(__file__).with_name("clients")

_LAYERS: dict[type[Event], str] = {
    CloseNotify: "tls",
    Alert: "tls",
    Fin: "tcp",
    Rst: "tcp",
    ConnectionClose: "quic",
    Vanished: "quic",
    RequestReceived: "http",
    ResponseSent: "http",
    StreamReset: "http",
    ExchangeCut: "http",
    GoAway: "http",
    Violation: "http",
}
#: Of the origin's own words.
_SAID = {"close_notify": "tls", "FIN": "tcp", "RST": "tcp", "CONNECTION_CLOSE": "quic"}

_STYLE = """
  text { font-size: 13px } .small { font-size: 11.5px } .name { font-size: 11.5px; font-weight: 400 }
  .bad { fill: #a3271c; font-size: 12px } .good { fill: #2c6b3a; font-size: 12px; font-weight: 600 }
  @media (prefers-color-scheme: dark) { .bad { fill: #ff9d92 } .good { fill: #8fd6a0 } }
"""
_WIDTH, _STEP, _TOP = 336, 30, 66
_CLIENT, _SERVER = 58, 262


class Word(NamedTuple):
    """One word of an ending.

    :ivar layer: ``"http"``, ``"tls"``, ``"tcp"`` or ``"quic"``.
    :ivar by_client: who said it.
    :ivar at: seconds since the response was sent.
    """

    layer: str
    by_client: bool
    text: str
    at: float


class Ending(NamedTuple):
    """How one connection ended.

    :ivar words: what was said, in order, from the request on.
    :ivar faults: what is wrong with it; none, if it was graceful.
    """

    words: list[Word]
    faults: list[str]


def ending(record: Record) -> Ending:
    """What a record says of the connection on which HTTP was spoken."""
    [number] = {event.connection for event in record.of(Speaks)}
    events = record.of(Event, number)
    answered = next((event.at for event in events if isinstance(event, ResponseSent)), 0.0)
    words = []
    for event in events:
        layer = _SAID.get(event.word, "http") if isinstance(event, Said) else _LAYERS.get(type(event))
        if layer is not None:
            words.append(Word(layer, event.direction == "←", _text(event), event.at - answered))
    return Ending(words, list(_faults(record)))


def _text(event: Event) -> str:
    if isinstance(event, GoAway) and event.code == 0:
        return "GOAWAY"
    if isinstance(event, ConnectionClose):
        return str(event).partition(" (")[0]  # without the client's own words
    return str(event).partition(" [")[0]


def _faults(record: Record) -> Iterator[str]:
    for line in (not_graceful(record) or "").partition("\n\n")[0].splitlines()[1:]:
        fault = line.partition(": ")[2].partition(" (RFC")[0]
        yield re.sub(r"^(CONNECTION_CLOSE \S+ \S+) \(.*\)", r"\1", fault)


def drawn(title: str, spoken: Spoken, shown: Ending) -> Picture:
    """The picture of it."""
    verdict = [line for fault in shown.faults for line in textwrap.wrap(f"✗ {fault}", 44)]
    height = _TOP + _STEP * len(shown.words) + 18 * max(1, len(verdict)) + 10
    picture = Picture(_WIDTH, height, f"{title}, {NAMES[spoken]}", _described(shown), _STYLE)
    picture.text(12, 24, title, "head")
    picture.text(_WIDTH - 12, 24, NAMES[spoken], "small", "end")
    picture.text(_CLIENT, 48, "client", "small", "middle")
    picture.text(_SERVER, 48, "server", "small", "middle")
    bottom = _TOP + _STEP * len(shown.words) - 8
    for x in (_CLIENT, _SERVER):
        picture.line(x, 54, x, bottom, "lane")
    for number, word in enumerate(shown.words):
        y = _TOP + _STEP * number + 14
        picture.text(10, y + 4, spoken if word.layer == "http" else word.layer, "small")
        ends = (_CLIENT, _SERVER) if word.by_client else (_SERVER, _CLIENT)
        picture.line(ends[0], y, ends[1], y)
        picture.text((_CLIENT + _SERVER) / 2, y - 5, word.text, "name", "middle")
        if word.at >= 0:
            picture.text(_WIDTH - 10, y + 4, f"{word.at * 1000:.1f} ms", "small", "end")
    if not verdict:
        picture.text(12, bottom + 22, "✓ graceful", "good")
    for number, line in enumerate(verdict):
        picture.text(12 if line[0] == "✗" else 25, bottom + 22 + 18 * number, line, "bad")
    return picture


def _described(shown: Ending) -> str:
    """The same in a few sentences, for those who do not see it."""
    turns = groupby(shown.words, lambda word: word.by_client)
    said = [f"{'Client' if ours else 'Server'}: {', '.join(word.text for word in words)}." for ours, words in turns]
    return " ".join([*said, "Not graceful: " + "; ".join(shown.faults) + "." if shown.faults else "Graceful."])


def captured(get: Get, spoken: Spoken) -> Ending:
    """One request of this client, and its end, as the origin sees them."""
    with Origin(versions=[spoken]) as origin:
        get(origin, "/")
        origin.wait_ended(timeout=60)
        return ending(origin.record)


def name_of(get: Get, spoken: Spoken) -> str:
    """The picture's."""
    return f"{spoken}-{get.__name__.removeprefix('by_')}.svg"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in filter(there, SPOKEN):
        for version in SPOKEN[each]:
            made = drawn(named(each), version, captured(each, version))
            (FOLDER / name_of(each, version)).write_text(str(made), encoding="utf-8")
            print(f"drawn: {name_of(each, version)}", flush=True)
