"""Draws the pictures of docs/explanation/architecture.md: `python docs/pictures/draw.py`.

The layers are those that import-linter checks. A layer without a description here is an error.
"""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]

#: What each module of the layers does, and what it alone may name.
_MODULES = {
    "testing": "how a client ends, as its servers see it",
    "_cli": "the command",
    "otel": "OpenTelemetry: spans and metrics",
    "_connect_udp": "UDP through a proxy, for callers",
    "_operations": "signals, and the lifespan of ASGI applications",
    "_client": "httpx2's client, on our transport",
    "_har": "recordings",
    "_transport": "translates requests, responses and errors of httpx2 and httpx",
    "_short": "the client's short ways",
    "_gzip": "decoding",
    "_patched": "others' patches",
    "_shapes": "which httpx2",
    "_pool": "which connection serves a request; limits; sending again",
    "_dial": "from a route to a connection: the only one that names concrete filters and backends",
    "_request": "a request, its body, its route, its response",
    "_connection": "one backend on one stack: exchanges, reading, writing, goodbyes",
    "_backends": "each version of HTTP, without I/O (h11, h2, hpack)",
    "_capsules": "capsules and HTTP datagrams",
    "_filters": "TCP, TLS, UDP, QUIC, tunnels, SOCKS",
    "_quic": "QUIC, without I/O (aioquic)",
    "_priority": "the priority of a response (RFC 9218)",
    "_fields": "what heads and trailers mean, in every version",
    "_signals": "the process's signals, on every event loop",
    "_tasks": "tasks and timers (the only one that names asyncio and trio)",
    "_observers": "functions that get events",
    "_debug_log": "three loggers",
    "_events": "what happens in a pool, as values",
    "_trace": "events for a request's trace",
    "_deadline": "instants, and the time that is left",
    "_config": "settings",
    "_addresses": "addresses",
    "_client_certificate": "certificates",
    "_pins": "pinned keys",
    "_report": "how it ended",
    "_messages": "heads",
    "_halves": "exchange states",
    "_quic_store": "tickets",
    "_alt_svc_store": "alternatives",
    "_errors": "errors",
    "_clock": "the clock",
    "_late": "late imports",
    "_memory": "memories with a bound",
}

_STYLE = """
  text { font: 14px system-ui, "Segoe UI", Roboto, Arial, sans-serif; fill: #1c1e21 }
  .name, .head { font-weight: 600 } .name { font-family: ui-monospace, Consolas, monospace; font-size: 13px }
  .small { font-size: 12.5px; fill: #4a4f57 }
  .page { fill: #fbfbfc; stroke: #d5d9df } .box { fill: #eef2f8; stroke: #7f93b2 }
  .key { fill: #dcebdf; stroke: #6b9a76 }
  .line { stroke: #4a5a73; stroke-width: 1.5; fill: none } .lane { stroke: #b9c0cb; stroke-dasharray: 3 4 }
  .wait { fill: #f0d9a8; stroke: #b8923c } .tip { fill: #4a5a73 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6e9ee } .small { fill: #b3bac5 }
    .page { fill: #1d2127; stroke: #3a414c } .box { fill: #2a3444; stroke: #6f86a8 }
    .key { fill: #273a2c; stroke: #6b9a76 }
    .line { stroke: #a9bad3 } .lane { stroke: #4b5462 } .wait { fill: #5a4a22; stroke: #c9a55a } .tip { fill: #a9bad3 }
  }
"""


class Picture:
    """An SVG with a background of its own, which is readable on light and dark pages.

    :param told: what it shows, in words. Such a picture is as large as it says, and not as wide as the page.
    :param style: more of CSS.
    """

    def __init__(self, width: int, height: int, title: str, told: str = "", style: str = "") -> None:
        size = f' width="{width}" height="{height}"' if told else ""
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"{size} role="img"'
            f' aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            *([f"<desc>{escape(told)}</desc>"] if told else []),
            f"<style>{_STYLE}{style}</style>",
            '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path class="tip" d="M0 0 8 4 0 8z"/></marker>',
            f'<rect class="page" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="8"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, kind: str = "box") -> None:
        self._parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>')

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        style = f' class="{kind}"' if kind else ""
        self._parts.append(f'<text{style} x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>')

    def line(self, x: float, y: float, to_x: float, to_y: float, kind: str = "line") -> None:
        tip = ' marker-end="url(#tip)"' if kind == "line" else ""
        self._parts.append(f'<path class="{kind}" d="M{x} {y} {to_x} {to_y}"{tip}/>')

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])


def layers() -> Picture:
    """Who may import whom: a layer knows only the layers below it."""
    contracts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [rows] = [each["layers"] for each in contracts if each["type"] == "layers"]
    height = 34
    picture = Picture(920, 48 + height * len(rows), "The layers of allswell: each imports only from those below it")
    picture.line(30, 34, 30, 26 + height * len(rows))
    picture.text(50, 24, "each layer may import those below it, and none above", "small")
    for number, row in enumerate(rows):
        names = [name.strip().removeprefix("allswell.") for name in row.split("|")]
        width = 850 / len(names)
        for place, name in enumerate(names):
            x, y = 50 + place * width, 34 + height * number
            picture.box(x, y, width - 6, height - 6, "key" if name in ("_backends", "_quic", "_fields") else "box")
            picture.text(x + 8, y + 19, name, "name")
            told = _MODULES[name]
            if len(names) < 3:
                picture.text(x + 20 + 8 * len(name), y + 19, told, "small")
            elif 8 * len(name) + 7 * len(told) + 26 < width:
                picture.text(x + 18 + 8 * len(name), y + 19, told, "small")
    return picture


_LANES = ("caller", "transport", "pool", "dialer", "connection", "backend", "stack", "server")
_STEPS = (
    ("caller", "transport", "request"),
    ("transport", "pool", "translated"),
    ("pool", "dialer", "no room: dial"),
    ("dialer", "stack", "connect: TCP, TLS, a proxy, or QUIC"),
    ("dialer", "pool", "connection"),
    ("pool", "connection", "room: open an exchange"),
    ("connection", "backend", "the head"),
    ("backend", "connection", "bytes"),
    ("connection", "stack", "write at once"),
    ("stack", "server", "request"),
    ("server", "stack", "response"),
    ("stack", "connection", "what has come"),
    ("connection", "backend", "bytes"),
    ("backend", "connection", "events"),
    ("connection", "caller", "head, then body, as far as it is read"),
    ("connection", "pool", "over: room for the next"),
)


def request() -> Picture:
    """The life of a request, from the caller to the server and back."""
    gap, step = 112, 34
    picture = Picture(40 + gap * len(_LANES), 74 + step * len(_STEPS), "The life of a request")
    middle = {name: 20 + gap / 2 + gap * number for number, name in enumerate(_LANES)}
    for name, x in middle.items():
        picture.line(x, 44, x, 62 + step * len(_STEPS), "lane")
        picture.box(x - 48, 16, 96, 28, "key" if name == "backend" else "box")
        picture.text(x, 35, name, "head", "middle")
    for number, (source, target, words) in enumerate(_STEPS):
        y, x, to = 78 + step * number, middle[source], middle[target]
        picture.line(x, y, to, y)
        picture.text((x + to) / 2 if abs(x - to) > gap * 1.5 else min(x, to) + gap / 2, y - 6, words, "small", "middle")
    return picture


#: Column: title, layers from the top down: what is said, what is awaited.
_ENDS = (
    (
        "HTTP/2 over TLS",
        (
            ("h2", "GOAWAY", "the last frame that we send", ""),
            ("tls", "close_notify", "in the same segment", "close_notify"),
            ("tcp", "FIN", "the rest is read and dropped", "FIN"),
        ),
    ),
    (
        "HTTP/3",
        (
            ("h3", "GOAWAY", "and a PING behind it", "acknowledgement"),
            ("quic", "CONNECTION_CLOSE", "three copies", "CONNECTION_CLOSE"),
            ("udp", "", "nothing to say", ""),
        ),
    ),
)


def ending() -> Picture:
    """The end of a connection, from the top of its stack down."""
    picture = Picture(920, 330, "The end of a connection, from the top down, within one grace")
    for number, (title, stack) in enumerate(_ENDS):
        left = 20 + 450 * number
        picture.text(left + 185, 32, title, "head", "middle")
        picture.text(left + 292, 58, "server", "small", "middle")
        picture.line(left + 292, 64, left + 292, 292, "lane")
        for place, (layer, said, words, heard) in enumerate(stack):
            y = 70 + 76 * place
            picture.box(left, y, 70, 58, "key" if place == 0 else "box")
            picture.text(left + 35, y + 34, layer, "name", "middle")
            if place:
                picture.line(left + 35, y - 18, left + 35, y - 2)
            if said:
                picture.line(left + 70, y + 18, left + 290, y + 18)
                picture.text(left + 180, y + 12, said, "name", "middle")
            if heard:
                picture.box(left + 76, y + 30, 6, 22, "wait")
                picture.line(left + 290, y + 46, left + 84, y + 46)
                picture.text(left + 180, y + 41, heard, "name", "middle")
            first, second = _halved(words)
            picture.text(left + 302, y + 22, first, "small")
            picture.text(left + 302, y + 38, second, "small")
    picture.box(20, 306, 6, 14, "wait")
    picture.text(
        34,
        318,
        "a wait, if the peer is silent: half of the time that is left, or all of it in the lowest layer",
        "small",
    )
    return picture


def _halved(words: str) -> tuple[str, str]:
    parts = words.split()
    cut = min(range(1, len(parts)), key=lambda at: abs(len(" ".join(parts[:at])) - len(words) / 2))
    return " ".join(parts[:cut]), " ".join(parts[cut:])


PICTURES = {"layers.svg": layers, "request.svg": request, "ending.svg": ending}

if __name__ == "__main__":
    for name, picture in PICTURES.items():
        (_HERE / name).write_text(str(picture()), encoding="utf-8")
