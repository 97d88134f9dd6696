"""How clients end, as the witness sees it: the table of docs/how-to/testing.md. ``python -m tests.testing.table``.

The rows are of the clients that are installed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from allswell.testing import CloseNotify, ConnectionClose, GoAway, Origin, Response, Rst
from tests.testing.clients import Get, by_aiohttp, by_allswell, by_curl, by_curl_cffi, by_httpx2, by_niquests

Spoken = Literal["h1", "h2", "h3"]
NAMES: dict[Spoken, str] = {"h1": "HTTP/1.1", "h2": "HTTP/2", "h3": "HTTP/3"}
SPOKEN: dict[Get, tuple[Spoken, ...]] = {
    by_allswell: ("h1", "h2", "h3"),
    by_httpx2: ("h1", "h2"),
    by_aiohttp: ("h1",),
    by_niquests: ("h1", "h2", "h3"),
    by_curl: ("h1", "h2"),
    by_curl_cffi: ("h1", "h2", "h3"),
}
HEAD = (
    "| client | version | GOAWAY | close_notify, CONNECTION_CLOSE | waits for the answer | half a body | graceful |\n"
    "|---|---|---|---|---|---|---|"
)
_HALF, _BODY = b"01234", b"0123456789"


def rows(get: Get) -> Iterator[str]:
    """The client's rows."""
    for spoken in SPOKEN[get]:
        with Origin(versions=[spoken]) as origin:
            get(origin, "/")
            origin.wait_ended()
            try:
                origin.assert_ended_gracefully()
            except AssertionError:
                graceful = "no"
            else:
                graceful = "yes"
            record = origin.record
            closes = [str(each).partition(" ")[2] for each in record.of(ConnectionClose)]
            said = ", ".join(closes) if spoken == "h3" else _yes(record.of(CloseNotify))
            goaway = "–" if spoken == "h1" else _yes(record.of(GoAway))
            waits = "–" if spoken == "h3" else _yes(not record.of(Rst))
        cells = (named(get), NAMES[spoken], goaway, said, waits, _half(get) if spoken == "h1" else "–", graceful)
        yield f"| {' | '.join(cells)} |"


def _half(get: Get) -> str:
    """What it makes of a body that only the connection's end delimits, when that comes without close_notify."""
    with Origin({"/": Response(body=_BODY, framing="close")}, versions=["h1"]) as origin:
        origin.truncate()
        try:
            body = get(origin, "/")
        except Exception:  # noqa: BLE001  whatever it raises, it has seen it
            return "error"
        return "taken for a whole one" if body == _HALF else repr(body)


def _yes(value: object) -> str:
    return "yes" if value else "no"


def named(get: Get) -> str:
    """Its name, with its release."""
    name = get.__name__.removeprefix("by_")
    if name == "allswell":
        return name
    if name == "curl":
        return " ".join(subprocess.run(["curl", "--version"], capture_output=True, text=True).stdout.split()[:2])
    return f"{name} {version(name)}"


def there(get: Get) -> bool:
    """Whether it is installed."""
    name = get.__name__.removeprefix("by_")
    try:
        return shutil.which("curl") is not None if name == "curl" else bool(version(name))
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    print(HEAD)
    for each in filter(there, SPOKEN):
        print("\n".join(rows(each)), flush=True)
