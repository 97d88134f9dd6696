"""The pictures of how clients end show what an origin's record says, and are those that the docs have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from docs.pictures.endings import FOLDER, captured, drawn, ending, name_of

from allswell.testing import (
    CloseNotify,
    Connected,
    ConnectionClose,
    Ended,
    Event,
    Fin,
    GoAway,
    Record,
    RequestReceived,
    ResponseSent,
    Rst,
    Said,
    Secured,
    Speaks,
)
from tests.testing.clients import Get, by_curl
from tests.testing.table import NAMES, SPOKEN, Spoken, named, there

_PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "six-clients.md"
_SVG = "{http://www.w3.org/2000/svg}"


class Shown(NamedTuple):
    """What a picture shows.

    :ivar client: what the client said, in order.
    :ivar server: the same of the server.
    """

    title: str
    client: list[str]
    server: list[str]
    verdict: str


def shown(svg: str) -> Shown:
    """Read it as a reader would: an arrow to the right is the client's, and its word stands above it."""
    root = ElementTree.fromstring(svg)
    arrows = [path for path in root.iter(f"{_SVG}path") if path.get("class") == "line"]
    words = [text for text in root.iter(f"{_SVG}text") if text.get("class") == "name"]
    said: dict[bool, list[str]] = {True: [], False: []}
    for arrow, word in zip(arrows, words, strict=True):
        x, y, to_x, _ = map(float, arrow.attrib["d"].removeprefix("M").split())
        assert y - 8 < float(word.attrib["y"]) < y
        said[to_x > x].append(word.text or "")
    verdict = [text.text or "" for text in root.iter(f"{_SVG}text") if text.get("class") in ("good", "bad")]
    title = re.sub(r" [\d.]+,", ",", root.findtext(f"{_SVG}title") or "")
    return Shown(title, said[True], said[False], " ".join(" ".join(verdict).split()))


def _record(*events: Event) -> Record:
    record = Record()
    begun = (Connected(1, 0.0, "TCP"), Secured(1, 0.1, "TLSv1.3", "h2"), Speaks(1, 0.2, "HTTP/2"))
    answered = (RequestReceived(1, 0.2, 1, "GET", "/"), ResponseSent(1, 0.3, 1, 200))
    for event in (*begun, *answered, *events, Ended(1, 0.5)):
        record.add(event)
    return record


def _drawn(*events: Event) -> Shown:
    return shown(str(drawn("someone 1.0", "h2", ending(_record(*events)))))


def test_a_picture_shows_what_the_record_says() -> None:
    graceful = _drawn(
        GoAway(1, 0.31, 0, 0), CloseNotify(1, 0.32), Said(1, 0.33, "close_notify"), Said(1, 0.33, "FIN"), Fin(1, 0.34)
    )
    assert graceful == Shown(
        "someone, HTTP/2", ["GET /", "GOAWAY", "close_notify", "FIN"], ["200", "close_notify", "FIN"], "✓ graceful"
    )
    cut = _drawn(Fin(1, 0.31), Said(1, 0.32, "close_notify"), Rst(1, 0.33))
    assert cut.client == ["GET /", "FIN", "RST"]
    assert cut.server == ["200", "close_notify"]
    for fault in ("✗ RST after FIN", "✗ FIN without close_notify", "✗ no GOAWAY"):
        assert fault in cut.verdict
    swapped = _drawn(CloseNotify(1, 0.31), GoAway(1, 0.32, 0, 1), Fin(1, 0.33))
    assert swapped.client == ["GET /", "close_notify", "GOAWAY 0x1", "FIN"]
    assert "✗ GOAWAY with error 0x1" in swapped.verdict


def test_a_picture_of_quic() -> None:
    record = Record()
    for event in (
        Connected(1, 0.0, "QUIC"),
        Speaks(1, 0.1, "HTTP/3"),
        RequestReceived(1, 0.1, 0, "GET", "/"),
        ResponseSent(1, 0.2, 0, 200),
        ConnectionClose(1, 0.21, 0, False, "in its own words"),
        Ended(1, 0.22),
    ):
        record.add(event)
    picture = drawn("someone", "h3", ending(record))
    assert shown(str(picture)).client == ["GET /", "CONNECTION_CLOSE 0x1c 0x0"]
    assert "own words" not in str(picture).partition("</desc>")[2]
    assert "10.0 ms" in str(picture)


def _those() -> list[Any]:
    """Not curl's: they are others on each machine, as its release and its TLS library are."""
    return [
        pytest.param(get, spoken, id=name_of(get, spoken))
        for get, versions in SPOKEN.items()
        for spoken in versions
        if get is not by_curl
    ]


@pytest.mark.parametrize(("get", "spoken"), _those())
def test_the_pictures_of_the_docs_are_of_this_kind(get: Get, spoken: Spoken) -> None:
    """Mend it by `make pictures`, if that is how the client ends now."""
    if not there(get):
        pytest.skip("not installed")
    kept = _kind(shown((FOLDER / name_of(get, spoken)).read_text(encoding="utf-8")))
    kinds: list[tuple[str, list[str], str]] = []
    while kept not in kinds and len(kinds) < 3:  # on a busy machine one may have no RST: the goodbye came in time
        kinds.append(_kind(shown(str(drawn(named(get), spoken, captured(get, spoken))))))
    assert kept in kinds


def _kind(picture: Shown) -> tuple[str, list[str], str]:
    """What is the same each time. A client that does not wait closes its socket while the server's goodbye comes.

    If that is there already, the kernel says RST in place of FIN; otherwise it says FIN, and RST to what comes later.
    What the server still said is chance for the same reason.
    """
    verdict = re.sub(r"RST(, and no FIN| after FIN: [^✗]*goodbye)", "RST", picture.verdict)
    hasty = "RST" in picture.client
    return picture.title, [word for word in picture.client if not (hasty and word == "FIN")], verdict


def test_the_kinds_of_endings_are_told_apart() -> None:
    goodbyes = GoAway(1, 0.31, 0, 0), CloseNotify(1, 0.32)
    hasty = _drawn(*goodbyes, Fin(1, 0.33), Rst(1, 0.34)), _drawn(*goodbyes, Said(1, 0.33, "FIN"), Rst(1, 0.34))
    assert hasty[0] != hasty[1]
    assert _kind(hasty[0]) == _kind(hasty[1])
    others = [_drawn(*goodbyes, Fin(1, 0.33)), _drawn(CloseNotify(1, 0.32), Fin(1, 0.33)), _drawn(Fin(1, 0.33))]
    kinds = [_kind(each) for each in (hasty[0], *others)]
    assert all(one != other for number, one in enumerate(kinds) for other in kinds[:number])


def test_each_picture_is_on_the_page_and_small_and_told_in_words() -> None:
    page = _PAGE.read_text(encoding="utf-8")
    names = [name_of(get, spoken) for get, versions in SPOKEN.items() for spoken in versions]
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(names)
    for name in names:
        svg = (FOLDER / name).read_text(encoding="utf-8")
        alt = f"![{shown(svg).title}](../pictures/clients/{name})"
        assert alt in page
        assert len(svg) < 6000
        assert "prefers-color-scheme: dark" in svg
        told = ElementTree.fromstring(svg).findtext(f"{_SVG}desc") or ""
        assert all(word in told for word in shown(svg).client)
    assert len(re.findall(r"!\[", page)) == len(names)
    assert {title.rpartition(", ")[2] for title in re.findall(r"!\[(.*?)\]", page)} == set(NAMES.values())
