"""What is measured: each scenario, the requests that it makes, and which versions of HTTP it is about.

No two requests are alike, as in life: each has a path, a query and a ``traceparent`` of its own, each JSON POST a body
of its own. No two responses are either: each has another ``ETag``, which every client reads. So what a client remembers
of earlier requests and responses helps it here as far as it would help in a service, and not further.

This module is imported by the process that is measured: it imports next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from random import Random
from typing import Literal, NamedTuple

TEN_MB = 10_000_000

ALL_VERSIONS = ("h1", "h2", "h3")


class Scenario(NamedTuple):
    """One of them.

    :ivar title: for people.
    :ivar path: of the origin (:mod:`tests.bench.origin`); what follows it is new for each request.
    :ivar size: of the response's body.
    :ivar sends: the body of each request: none, 1 KB of JSON, or 10 MB.
    :ivar at_once: how many requests.
    :ivar way: ``"kept"``: again and again on one client. ``"cold"``: each on a new client, its connection new too.
        ``"fresh"``: one request, in a process that has imported nothing yet.
    :ivar per: what the figures are per.
    """

    title: str
    path: str
    size: int
    sends: Literal["", "json", "bulk"] = ""
    at_once: int = 1
    way: Literal["kept", "cold", "fresh"] = "kept"
    per: Literal["request", "MB"] = "request"
    versions: tuple[str, ...] = ALL_VERSIONS

    @property
    def units(self) -> float:
        """How many of them a request makes."""
        return TEN_MB / 1e6 if self.per == "MB" else 1.0


SMALL_BODY = b'{"hello": "world"}'
FIELDS_BODY = b'{"id": 4711, "name": "Ada Lovelace", "roles": ["reader", "writer"], "active": true, "balance": "12.50"}'
CHUNKED_BODY = (
    b"[" + b'{"id": 4711, "state": "shipped"}, ' * 240 + b"null]"
)  # long enough for Caddy to send it in chunks

SCENARIOS: dict[str, Scenario] = {
    "1": Scenario("small GETs, one at a time", "small", len(SMALL_BODY)),
    "50": Scenario("small GETs, 50 at once", "small", len(SMALL_BODY), at_once=50),
    "fields": Scenario("GETs, 16 response fields, 50 at once", "fields", len(FIELDS_BODY), at_once=50),
    "json": Scenario("JSON POSTs of 1 KB, 16 response fields, 50 at once", "fields", len(FIELDS_BODY), "json", 50),
    "chunked": Scenario(
        "GETs of 8 KB in chunks, 50 at once", "chunked", len(CHUNKED_BODY), at_once=50, versions=("h1",)
    ),
    "10mb": Scenario("10 MB downloads, one at a time", "10mb", TEN_MB, per="MB"),
    "4x10mb": Scenario("10 MB downloads, 4 at once", "10mb", TEN_MB, at_once=4, per="MB"),
    "upload": Scenario("10 MB uploads, one at a time", "upload", len(SMALL_BODY), "bulk", per="MB"),
    "cold": Scenario("new client, connection, first GET", "small", len(SMALL_BODY), way="cold"),
    "fresh": Scenario("new process: import, first GET", "small", len(SMALL_BODY), way="fresh"),
}


class Request(NamedTuple):
    """What a client is to send: a GET, or a POST where there is a body."""

    url: str
    headers: dict[str, str]
    body: bytes | None


def requests(origin: str, scenario: Scenario, seed: int = 0) -> Iterator[Request]:
    """The requests of a run, without end; the same ones for each client."""
    random = Random(seed).getrandbits
    bodies: dict[str, Callable[[int], bytes | None]] = {"": lambda _: None, "json": _json, "bulk": _bulk()}
    body = bodies[scenario.sends]
    fixed = {"accept": "application/json", "user-agent": "bench/1.0"}
    if scenario.sends:
        fixed["content-type"] = "application/json" if scenario.sends == "json" else "application/octet-stream"
    for number in count(random(20)):
        trace = f"00-{random(128):032x}-{random(64):016x}-01"
        url = f"{origin}/{scenario.path}/{number:x}/lines?page={number % 97}"
        yield Request(url, {**fixed, "traceparent": trace}, body(number))


def _json(number: int) -> bytes:
    return b'{"id": %d, "lines": [%s' % (number, _LINES)


_LINES = (
    b'{"sku": "A-1000-17", "count": 3, "price": "17.90"}, ' * 18
    + b'null], "note": "please ring twice, and leave it with the neighbour"}'
)


def _bulk() -> Callable[[int], bytes]:
    made: list[bytes] = []

    def body(_: int) -> bytes:
        if not made:
            made.append(b"0123456789" * (TEN_MB // 10))
        return made[0]

    return body
