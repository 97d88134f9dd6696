"""The short ways of the client against httpx2's own: the same requests, responses, errors, and effects of overrides."""

from __future__ import annotations

import gzip
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.cookiejar import Cookie, CookieJar
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import httpx2
import pytest
from httpx2._client import BoundAsyncStream
from httpx2._urlparse import PATH_SAFE, QUERY_SAFE, UNRESERVED_CHARACTERS
from hypothesis import given, settings
from hypothesis import strategies as st

import allswell
from allswell import _shapes, _short
from allswell._errors import AllswellError
from allswell._fields import OF_THE_CLIENT
from allswell._messages import LoweredHeaders
from allswell._request.route import Destination, Destinations, parsed
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.scripts import answers


@contextmanager
def ways(short: bool) -> Iterator[None]:
    before, _short.ON = _short.ON, short
    try:
        yield
    finally:
        _short.ON = before


def test_what_is_known_of_httpx2() -> None:
    """A canary. Where it fails, httpx2 has changed: see `_shapes.py`. Until then all requests go the long way."""
    assert list(_shapes.changed()) == []
    assert httpx2.__version__ == _shapes.VERSION
    assert _short.ON


def test_a_function_of_another_has_no_short_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(self: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
        raise NotImplementedError

    made: dict[str, Any] = {}
    exec("async def send(self, request): pass", made)
    assert _shapes.known()
    for other in (send, made["send"], missing, lambda: None, None):
        for sources in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(httpx2.AsyncClient, "send", other)
                if not sources:
                    patch.setattr("builtins.open", missing)
                assert not _shapes.known()
    with monkeypatch.context() as patch:  # installed without sources
        patch.setattr("builtins.open", missing)
        assert _shapes.known()
        patch.setattr(httpx2, "__version__", "2.99.0")
        assert not _shapes.known()


def test_another_httpx2_is_asked_for_all(tmp_path: Path) -> None:
    """One in which all that the short ways know has other names."""
    names = "_merge_url|_merge_headers|_build_request_auth|_send_handling_auth|_send_handling_redirects"
    names += "|_send_single_request|_uri_reference|BoundAsyncStream|ClientState"
    names += "|UseClientDefault|encode_request|ParseResult"
    copy = tmp_path / "httpx2"
    shutil.copytree(Path(httpx2.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file in copy.glob("*.py"):
        file.write_text(re.sub(rf"\b({names})\b", r"\1_of_late", file.read_text(encoding="utf-8")), encoding="utf-8")
    program = """
import asyncio, sys
import httpx2, allswell
from allswell import _short
async def main():
    async with allswell.AsyncClient(base_url=sys.argv[1], follow_redirects=True) as client:
        response = await client.post("/a", json={"a": 1}, headers={"x": "y"})
        print(httpx2.__file__.startswith(sys.argv[2]), _short.ON, response.text, response.url.path, response.is_closed)
        async with client.stream("GET", "/b") as response:
            print(await response.aread())
asyncio.run(main())
"""
    path = os.pathsep.join([str(tmp_path), *(each for each in sys.path if each)])
    with scripted_peer(answers()) as peer:
        result = subprocess.run(
            [sys.executable, "-c", program, peer.url, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.stderr == ""
    assert result.stdout.split("\n")[:2] == ["True False /a /a True", "b'/b'"]


def missing(*_: object) -> None:
    raise FileNotFoundError


# --- URLs

_PARTS = st.lists(
    st.sampled_from(
        [
            *"aZ0-._~!$&'()*+,;=:@/?#[]%\\^`{|}\" <>",
            "//",
            "..",
            "/.",
            "/..",
            "%20",
            "%zz",
            "é",
            "中",
            "xn--fiqs8s",
            "\n",
        ]
    ),
    max_size=8,
).map("".join)
_HOSTS = st.sampled_from(
    [
        "example.org",
        "EXAMPLE.org",
        "127.0.0.1",
        "127.0.0.256",
        "01.2.3.4",
        "1.2.3",
        "1.2.3.4.5",
        "[::1]",
        "[::1%25eth0]",
        "xn--fiqs8s.icom.museum",
        "中国.icom.museum",
        "a_b.example",
        "-a-.example",
        "a..b",
        "example.org.",
        "user@example.org",
        "u:p@example.org",
        "localhost",
        "1.2.3.4a",
        "0a",
        "",
        ".",
        "a b",
        "%41.example",
        "x" * 70,
        "127.0.0.1.example",
    ]
)
_PORTS = st.sampled_from(
    ["", ":", ":80", ":443", ":8080", ":0", ":080", ":65535", ":65536", ":99999", ":123456", ":x", ":-1"]
)
_SCHEMES = st.sampled_from(["http://", "https://", "ws://", "wss://", "HTTP://", "ftp://", "http:", "//", "", "about:"])
ABSOLUTE = st.builds(
    "".join,
    st.tuples(_SCHEMES, st.one_of(_HOSTS, _PARTS), _PORTS, st.one_of(st.just(""), _PARTS, _PARTS.map("/".__add__))),
)
URLS = st.one_of(ABSOLUTE, _PARTS, _PARTS.map("/".__add__), st.text(max_size=12))


@settings(max_examples=1500)
@given(st.lists(ABSOLUTE, min_size=1, max_size=3))
def test_a_plain_url_is_what_parsing_makes_of_it(texts: list[str]) -> None:
    """Whatever is remembered of others."""
    urls = _short.Urls()
    for text in [*texts, *texts]:
        plain = urls.parsed(text)
        assert plain == _short.plain_url(text)
        if plain is not None:
            assert httpx2.URL(text)._uri_reference == plain


@settings(max_examples=800, deadline=None)
@given(st.lists(ABSOLUTE, min_size=1, max_size=4))
def test_a_pool_goes_where_parsing_says(urls: list[str]) -> None:
    """What it remembers of one URL is not taken for another's."""

    def found(to: Callable[[str], tuple[Destination, bytes]], url: str) -> tuple[Destination, bytes] | str:
        try:
            return to(url)
        except AllswellError as error:
            return f"{error!r} {error}"

    destinations = Destinations()
    for url in [*urls, *urls, f"http://example.org/{'x' * 70_000}"]:
        assert found(destinations.__getitem__, url) == found(parsed, url)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8000/",
        "https://example.org",
        "https://example.org/a/b.c/.well-known/x?y=z&%20=%2F",
        "https://example.org:443/..a/...?",
        "wss://a.b-c.example/x;y=1,2/@:(a)'!*",
        "http://localhost:8000/%e4%b8%ad?a[]=1",
    ],
)
def test_ordinary_urls_are_plain(text: str) -> None:
    assert httpx2.URL(text)._uri_reference == _short.plain_url(text)


def test_all_that_parsing_leaves_alone_is_plain() -> None:
    for safe, before in ((PATH_SAFE, "http://example.org/a"), (QUERY_SAFE, "http://example.org/?a")):
        for character in map(chr, range(0x100)):
            delimiter = character in "?#"
            left_alone = character in safe + UNRESERVED_CHARACTERS and not delimiter
            assert (_short.plain_url(f"{before}{character}z") is not None) == (left_alone or character == "?"), (
                character
            )


# --- Requests


#: Extensions that are objects of the one response.
UNLIKE = ("network_stream", "reprioritize")


def told(value: object) -> object:
    """All that can be seen of an object, to compare."""
    if isinstance(value, httpx2.URL):
        names = ("scheme", "userinfo", "host", "raw_host", "port", "netloc", "path", "query", "raw_path", "fragment")
        return type(value), vars(value), str(value), hash(value), [getattr(value, name) for name in names]
    if isinstance(value, httpx2.Headers):
        return type(value), vars(value)
    if isinstance(value, httpx2.ByteStream):
        return type(value), b"".join(value)
    if isinstance(value, (httpx2.AsyncByteStream, httpx2.SyncByteStream)):
        inner = getattr(value, "_stream", None)
        kind = BoundAsyncStream if isinstance(value, BoundAsyncStream) else type(value)
        return kind, getattr(value, "elapsed", 0) is None, type(inner)
    if isinstance(value, (httpx2.Request, httpx2.Response)):
        seen = {name: told(each) for name, each in vars(value).items() if name != "_decoder"}  # which nobody asks twice
        return type(value), seen
    if isinstance(value, BaseException):
        request = value._request if isinstance(value, httpx2.RequestError) else None
        return type(value), str(value), told(request), told(value.__cause__)
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    if isinstance(value, dict):
        return {key: told(each) for key, each in value.items() if key not in UNLIKE}
    return value


def outcome(function: Callable[[], object]) -> object:
    try:
        return told(function())
    except Exception as error:  # noqa: BLE001  # whatever it is, both ways must raise it
        return told(error)


def both(function: Callable[[], object]) -> None:
    with ways(False):
        long = outcome(function)
    with ways(True):
        assert outcome(function) == long


_NAMES = st.sampled_from(
    ["a", "Accept", "USER-AGENT", "host", "Content-Length", "content-type", "Transfer-Encoding", "é", "x y"]
)
_VALUES = st.sampled_from(["", "b", "0", "3", "chunked", "é", "text/plain", " x "])
_PAIRS = st.lists(st.tuples(_NAMES, _VALUES), max_size=4)
_RAW = _PAIRS.map(lambda pairs: [(name.encode(), value.encode("latin-1")) for name, value in pairs])
HEADERS = st.one_of(
    st.none(),
    _PAIRS,
    _RAW,
    _PAIRS.map(dict),
    _RAW.map(httpx2.Headers),
    st.just({"a": 1}),
    st.just({"a": None}),
    st.just([("a", "b", "c")]),
)


class Text(str):
    """A subclass, which is not ordinary."""


class Location(httpx2.URL):
    """Another."""


async def pieces() -> AsyncIterator[bytes]:
    yield b"a"


_SPOKEN = st.sampled_from([None, b"", b"abc", "", "é", bytearray(b"x"), [b"a", b"b"], 5, object])
CONTENT = st.one_of(_SPOKEN, st.builds(pieces))


CLIENTS = st.fixed_dictionaries(
    {},
    optional={
        "base_url": st.sampled_from(
            [
                "http://example.org",
                "https://example.org:8443/api",
                "http://u:p@example.org/a/?b=c",
                "http://[::1]/x/",
                "/only/a/path",
                "http://example.org/a/../b",
                "http://example.org/#f",
                "http://中国.icom.museum/x",
            ]
        ),
        "headers": st.one_of(_PAIRS, _RAW),
        "params": st.just({"x": "y"}),
        "cookies": st.just({"c": "d"}),
        "timeout": st.just(None),
    },
)
PARAMS = st.one_of(
    st.sampled_from([None, {}, "", {"a": "b"}, "c=d", {"a": [1, None], "é": "ü &=+%"}, [("a", "b"), ("a", True)], 5]),
    st.sampled_from([httpx2.QueryParams({"a": "b"}), {"a": "\ud800"}, {"a": "b" * 70_000}]),
)
REQUESTS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "get", "POST", "put", "QUERY", "DELETE", "é", Text("PATCH"), b"GET", None]),
        "url": st.one_of(
            URLS, URLS.map(Text), URLS.map(str.encode), st.just(None), st.just(Location("http://x.example/"))
        ),
    },
    optional={
        "headers": HEADERS,
        "content": CONTENT,
        "data": st.sampled_from([None, {}, {"a": "b"}, {"a": [1, None]}, "text", b"bytes", [("a", "b")]]),
        "json": st.sampled_from([None, {}, [], {"a": "é"}, 0, float("nan"), object]),
        "files": st.sampled_from([None, {}, {"f": b"x"}]),
        "params": PARAMS,
        "cookies": st.sampled_from([None, {}, {"e": "f"}]),
        "timeout": st.sampled_from([httpx2.USE_CLIENT_DEFAULT, None, 1, (1, 2, 3, 4), httpx2.Timeout(7), "x"]),
        "extensions": st.sampled_from(
            [None, {}, {"timeout": {}}, {"timeout": None, "a": 1}, {"a": 1}, {1: 2}, [("a", 1)]]
        ),
    },
)


@settings(max_examples=800)
@given(CLIENTS, REQUESTS, st.booleans())
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_requests_are_the_same(ours: dict[str, Any], request: dict[str, Any], as_url: bool) -> None:
    def build() -> object:
        client = allswell.AsyncClient(transport=httpx2.AsyncBaseTransport(), **ours)
        given = dict(request)
        if as_url:
            given["url"] = httpx2.URL(given["url"])
        if isinstance(given.get("headers"), list):
            given["headers"] = iter(given["headers"])
        made = client.build_request(**given)
        assert made.url is not given["url"]
        assert made.extensions is not given.get("extensions")
        made.headers["added"] = "é"  # nobody else's
        return made, client.headers, outcome(lambda: made.content), outcome(lambda: pickle.loads(pickle.dumps(made)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.urandom", bytes)  # of which multipart forms make their boundaries
        both(build)


@pytest.mark.parametrize("base", ["http://example.org", "https://example.org:8443/api/v1.0", "http://example.org/a//"])
def test_relative_urls_are_the_same(base: str) -> None:
    texts = ["", "/", "//", "///a", "//example.org", "a", "/a", "a/b:c", "a:b/c", ":", "/:", "?q", "?a:b", "/?q", "./a"]
    texts += [
        "../a",
        "a/./b",
        "a/..",
        ".a",
        "..a",
        "a//b",
        "/a/?",
        "#f",
        "a#f",
        "%2e/a",
        "é",
        "a b",
        "http:",
        "http:///a",
    ]
    client = allswell.AsyncClient(transport=httpx2.AsyncBaseTransport(), base_url=base)
    for text in texts:
        both(partial(client.build_request, "GET", text))


# --- Exchanges


class Body(_short.WholeStream):
    """What our transport's is: a body that fails where it is told to, and that can be read whole."""

    def __init__(self, pieces: list[bytes], error: Exception | None) -> None:
        self._pieces, self._error = pieces, error
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
        if self._error is not None:
            raise self._error

    async def read_whole(self, count: Callable[[int], None]) -> bytes:
        for piece in self._pieces:
            count(len(piece))
        if self._error is not None:
            raise self._error
        return b"".join(self._pieces)

    async def aclose(self) -> None:
        self.closed += 1


class Plain(httpx2.AsyncByteStream):
    """A stream that wraps another, as caches and tracers make them."""

    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            yield piece.upper()

    async def aclose(self) -> None:
        await self._inner.aclose()


Answer = tuple[int, list[tuple[bytes, bytes]], list[bytes], type[Exception] | None]


def in_plain_form(headers: list[tuple[bytes, bytes]]) -> LoweredHeaders | None:
    """As a backend gives it that remembers fields."""
    fields = [(name, name.lower(), value) for name, value in headers]
    plain = all(lower not in OF_THE_CLIENT and (name + value).isascii() for name, lower, value in fields)
    return fields if plain else None


class Origin(httpx2.AsyncBaseTransport):
    """Gives one answer after another, then the last again."""

    def __init__(self, answers: list[Answer], wrapped: str) -> None:
        self._answers, self._wrapped = answers, wrapped
        self.requests: list[httpx2.Request] = []
        self.bodies: list[Body] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        status, headers, parts, error = self._answers[min(len(self.requests), len(self._answers) - 1)]
        self.requests.append(request)
        if status == 0:
            assert error is not None
            raise error("no answer")
        failure = error("cut") if error is not None else None
        self.bodies.append(body := Body(parts, failure))
        extensions = {"http_version": b"HTTP/2", "request": len(self.requests)}
        if self._wrapped == "not ours":
            return httpx2.Response(status, headers=headers, stream=body, extensions=extensions)
        plain = in_plain_form(headers) if self._wrapped == "remembered" else None
        response = _short.Response.of(status, headers, body, extensions, plain)
        if self._wrapped == "stream":
            response.stream = Plain(body)
        elif self._wrapped == "read":
            response.request = request
            await response.aread()
        elif self._wrapped == "history":
            response.history.append(response)
            response.headers = httpx2.Headers(response.headers)
        return response


def twice(request: httpx2.Request) -> Iterator[httpx2.Request]:
    yield request
    request.headers["again"] = "1"
    yield request


class Challenge(httpx2.Auth):
    def auth_flow(self, request: httpx2.Request) -> Any:
        return twice(request)


async def hook(message: Any) -> None:
    message.headers["hooked"] = "é"


async def failing_hook(message: Any) -> None:
    raise ZeroDivisionError


FIELDS = st.lists(
    st.sampled_from(
        [
            (b"Content-Type", b"text/plain; charset=latin-1"),
            (b"content-type", b"text/html; charset=none-such"),
            (b"Set-Cookie", b"s=1; Path=/"),
            (b"set-cookie2", b"s=2"),
            (b"SET-COOKIE", b"t=\xe9"),
            (b"X", b"\xc3\xa9"),
            (b"Content-Encoding", b"identity"),
            (b"Content-Encoding", b"gzip"),
            (b"content-encoding", b"none-such, deflate"),
            (b"Content-Length", b"4"),
        ]
    ),
    max_size=3,
)
LOCATIONS = st.sampled_from(["/next", "https://elsewhere.example/", "http://exam ple:x/", "//b/c", "?q", "", "é"])
ANSWERS: st.SearchStrategy[Answer] = st.one_of(
    st.tuples(st.sampled_from([200, 204, 404, 500, 304, 300, 299, 600]), FIELDS, st.just([b"ab", b"c"]), st.none()),
    st.tuples(st.just(200), FIELDS, st.lists(st.sampled_from([b"", b"abc", gzip.compress(b"x")])), st.none()),
    st.builds(
        lambda status, fields, to, error: (status, [*fields, (b"Location", to.encode())], [b"moved"], error),
        st.sampled_from([301, 302, 303, 307, 308, 200, 304, 201]),
        FIELDS,
        LOCATIONS,
        st.sampled_from([None, None, None, httpx2.ReadError]),
    ),
    st.tuples(st.sampled_from([200, 302]), FIELDS, st.just([b"ab"]), st.sampled_from([httpx2.ReadError, ValueError])),
    st.tuples(st.just(0), FIELDS, st.just([]), st.sampled_from([httpx2.ConnectError, httpx2.ReadTimeout, OSError])),
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "follow_redirects": st.booleans(),
        "max_redirects": st.sampled_from([-1, 0, 1, 20]),
        "default_encoding": st.sampled_from(["latin-1", lambda content: "utf-8"]),
        "auth": st.sampled_from([("u", "p"), Challenge(), None]),
        "event_hooks": st.sampled_from([{}, {"request": [hook]}, {"response": [hook]}, {"response": [failing_hook]}]),
        "cookies": st.just({"c": "d"}),
        "trust_env": st.booleans(),
    },
)
SENT = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["HEAD", "POST"]),
        "content": st.sampled_from([b"abc", [b"abc"]]),
        "url": st.sampled_from(["http://u:p@example.org/#f", "https://example.org/x", "ftp://example.org/", "nowhere"]),
    },
)
HOW = st.sampled_from(
    [
        "request",
        "request",
        "stream",
        "stream and read",
        "stream and iterate",
        "stream raw",
        "send",
        "sent bare",
        "closed",
    ]
)
WRAPPED = st.sampled_from(["", "", "", "", "not ours", "stream", "read", "history", "mounted", "remembered"])


async def all_of(response: httpx2.Response) -> list[object]:
    names = ("content", "encoding", "text", "cookies", "num_bytes_downloaded", "url", "http_version")
    seen = [told(response), *(outcome(partial(getattr, response, name)) for name in names)]
    seen.append(outcome(lambda: response.elapsed is not None))
    try:
        seen.append(await response.aread())
    except Exception as error:  # noqa: BLE001  # whatever it is, both ways must raise it
        seen.append(told(error))
    return [*seen, told(pickle.loads(pickle.dumps(response.headers)))]


async def exchange(
    ours: dict[str, Any], given: dict[str, Any], how: str, wrapped: str, answers: list[Answer]
) -> object:
    """Two requests of a client, as one may send them; and all that can be seen of them."""
    origin = Origin(answers, wrapped)
    mounts: Any = {"all://example.org": origin} if wrapped == "mounted" else {}
    transport: Any = httpx2.MockTransport(lambda _: httpx2.Response(418)) if wrapped == "mounted" else origin
    client = allswell.AsyncClient(transport=transport, mounts=mounts, **ours)
    if how != "sent bare":
        await client.__aenter__()
    told_of: list[object] = []
    given = {"method": "GET", "url": "http://example.org/a?b", **given}
    for _ in range(2):
        response: httpx2.Response | None = None
        try:
            if how == "request":
                response = await client.request(**given)
            elif how.startswith("stream"):
                async with client.stream(**given) as response:
                    if how == "stream and read":
                        await response.aread()
                        assert await response.aread() is response.content
                    elif how == "stream and iterate":
                        told_of.append([piece async for piece in response.aiter_bytes(1)])
                    elif how == "stream raw":
                        async for piece in response.aiter_raw():
                            told_of.append(piece)
                            break
            elif how == "sent bare":
                response = await client.send(httpx2.Request(**given), auth=None, follow_redirects=True)
            else:
                if how == "closed":
                    await client.aclose()
                response = await client.send(client.build_request(**given))
        except Exception as error:  # noqa: BLE001  # whatever it is, both ways must raise it
            told_of.append(told(error))
        if response is not None:
            told_of += await all_of(response)
    told_of.append(told(origin.requests))
    told_of.append([body.closed for body in origin.bodies])
    told_of.append(sorted(str(cookie) for cookie in client.cookies.jar))
    await client.aclose()
    return told_of


def exchange_of(*given: Any) -> object:
    backend = "asyncio"  # no I/O: nothing here knows it
    return anyio.run(exchange, *given, backend=backend)


@settings(max_examples=700)
@given(SETTINGS, SENT, HOW, WRAPPED, st.lists(ANSWERS, min_size=1, max_size=3))
def test_exchanges_are_the_same(
    ours: dict[str, Any], given: dict[str, Any], how: str, wrapped: str, answers: list[Answer]
) -> None:
    logs: list[list[str]] = []
    seen: list[object] = []
    logger = logging.getLogger("httpx2")
    for short in (False, True):
        records: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record, records=records: records.append(record.getMessage())  # type: ignore[misc,method-assign]
        logger.addHandler(handler)
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            with ways(short):
                seen.append(exchange_of(ours, given, how, wrapped, answers))
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        logs.append(records)
    assert seen[1] == seen[0]
    assert logs[1] == logs[0]


#: What a task may change of a client while its request is in flight.
MEANWHILE: dict[str, Callable[[allswell.AsyncClient], object]] = {
    "hook added": lambda client: client.event_hooks["response"].append(hook),
    "hooks replaced": lambda client: setattr(client, "event_hooks", {"response": [hook], "request": [hook]}),
    "failing hook": lambda client: client.event_hooks["response"].append(failing_hook),
    "hook removed": lambda client: client.event_hooks["response"].clear(),
    "cookies": lambda client: setattr(client, "cookies", {"c": "d"}),
    "encoding": lambda client: setattr(client, "_default_encoding", "latin-1"),
    "redirects": lambda client: setattr(client, "max_redirects", 0),
    "following": lambda client: setattr(client, "follow_redirects", not client.follow_redirects),
    "auth": lambda client: setattr(client, "auth", ("u", "p")),
    "headers": lambda client: setattr(client, "headers", {"x": "y"}),
    "base": lambda client: setattr(client, "base_url", "https://elsewhere.example/"),
}


@pytest.mark.parametrize("status", [200, 302])
@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("change", MEANWHILE)
def test_what_changes_while_a_request_is_in_flight_is_seen_as_late(change: str, follow: bool, status: int) -> None:
    async def run() -> object:
        answers: list[Answer] = [
            (status, [(b"Location", b"/next"), (b"Set-Cookie", b"s=1")], [b"\xc3\xa9"], None),
            (200, [], [b"after"], None),
        ]
        origin = Origin(answers, "")
        answer = origin.handle_async_request

        async def changes(request: httpx2.Request) -> httpx2.Response:
            response = await answer(request)
            if len(origin.requests) == 1:
                MEANWHILE[change](client)
            return response

        origin.handle_async_request = changes  # type: ignore[method-assign]
        hooks = {"response": [hook]} if change == "hook removed" else {}
        client = allswell.AsyncClient(transport=origin, follow_redirects=follow, event_hooks=hooks)
        told_of: list[object] = []
        async with client:
            for _ in range(2):
                try:
                    told_of += await all_of(await client.get("http://example.org/a"))
                except Exception as error:  # noqa: BLE001  # whatever it is, both ways must raise it
                    told_of.append(told(error))
        return [*told_of, told(origin.requests), [body.closed for body in origin.bodies]]

    seen = []
    for short in (False, True):
        with ways(short):
            seen.append(anyio.run(run, backend="asyncio"))
    assert seen[1] == seen[0]


# --- Who takes which way


@contextmanager
def calls() -> Iterator[set[str]]:
    """The functions of httpx2 that are called meanwhile."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("httpx2."):
            seen.add(frame.f_code.co_qualname)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(before)


#: What an ordinary request does without.
LONG = frozenset(
    {
        "BaseClient.build_request",
        "BaseClient._merge_url",
        "BaseClient._merge_headers",
        "AsyncClient.send",
        "AsyncClient._send_handling_auth",
        "AsyncClient._send_handling_redirects",
        "AsyncClient._send_single_request",
        "Auth.async_auth_flow",
        "Cookies.extract_cookies",
        "Request.__init__",
        "Response.__init__",
        "Response.aread",
        "Response.aiter_raw",
        "urlparse",
    }
)


@pytest.mark.anyio
@pytest.mark.parametrize("base", ["", "/api"])
@pytest.mark.parametrize(
    "given",
    [{}, {"headers": {"X-Request-Id": "1"}}, {"json": {"a": 1}}, {"timeout": 3}, {"params": {"d": "e"}}],
    ids=str,
)
async def test_an_ordinary_request_goes_the_short_ways(base: str, given: dict[str, Any]) -> None:
    with scripted_peer(answers()) as peer:
        async with allswell.AsyncClient(base_url=peer.url + base if base else "") as client:
            for path in ("/a", "/b?c=%20"):
                with calls() as seen:
                    response = await client.request("PUT", path if base else peer.url + path, **given)
                assert response.content.decode() == response.url.raw_path.decode()
                assert seen & LONG == set()
            with calls() as seen, ways(False):
                await client.get("/" if base else peer.url)
            assert seen >= LONG


OVERRIDDEN = [
    "build_request",
    "_merge_url",
    "_merge_headers",
    "_merge_cookies",
    "_merge_queryparams",
    "_set_timeout",
    "_build_request_auth",
    "send",
    "_send_handling_auth",
    "_send_handling_redirects",
    "_send_single_request",
    "_transport_for_url",
    "request",
]


def noting(function: Any, name: str, calls_of: list[str]) -> Any:
    """The function, which tells that it was called."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls_of.append(name)
        return function(*args, **kwargs)

    return noted


@pytest.mark.anyio
@pytest.mark.parametrize("name", OVERRIDDEN)
@pytest.mark.parametrize("where", ["a subclass", "beside it", "patched", "the object"])
async def test_what_is_overridden_keeps_its_effect(where: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    function = getattr(httpx2.AsyncClient, name)
    kind: type[allswell.AsyncClient] = allswell.AsyncClient
    if where == "a subclass":
        kind = type("Mine", (allswell.AsyncClient,), {name: noting(getattr(kind, name), name, called)})
    elif where == "beside it":
        beside = type("Beside", (httpx2.AsyncClient,), {name: noting(function, name, called)})
        kind = type("Mine", (allswell.AsyncClient, beside), {})
    elif where == "patched":
        monkeypatch.setattr(httpx2.AsyncClient, name, noting(function, name, called))
    with scripted_peer(answers()) as peer:
        async with kind() as client:
            if where == "the object":
                monkeypatch.setattr(client, name, noting(getattr(client, name), name, called))
            assert (await client.get(f"{peer.url}/x")).text == "/x"
    assert called == [name]


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["aread", "aiter_bytes", "aiter_raw", "aclose"])
@pytest.mark.parametrize("where", ["patched", "the object"])
async def test_what_is_patched_of_a_response_keeps_its_effect(
    where: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    if where == "patched":
        monkeypatch.setattr(httpx2.Response, name, noting(getattr(httpx2.Response, name), name, called))
    with scripted_peer(answers()) as peer:
        async with allswell.AsyncClient() as client, client.stream("GET", f"{peer.url}/x") as response:
            if where == "the object":
                monkeypatch.setattr(response, name, noting(getattr(response, name), name, called))
            assert await response.aread() == b"/x"
    assert name in called


def test_a_jar_of_another_kind_is_asked_for_its_cookies() -> None:
    """Where it keeps them is its own affair."""

    kept = httpx2.Cookies({"a": "b"}).jar

    class Jar(CookieJar):
        def __iter__(self) -> Iterator[Cookie]:
            return iter(kept)

        def add_cookie_header(self, request: Any) -> None:
            kept.add_cookie_header(request)

    emptied = httpx2.Cookies({"a": "b"})
    emptied.delete("a")
    for cookies, sent in ((Jar(), "a=b"), (emptied, None), (CookieJar(), None)):
        client = allswell.AsyncClient(cookies=cookies)
        both(partial(client.build_request, "GET", "http://example.org/"))
        assert client.build_request("GET", "http://example.org/").headers.get("cookie") == sent


@pytest.mark.anyio
async def test_cookies_that_come_are_sent_the_next_time() -> None:
    with scripted_peer(answers(fields=("Set-Cookie: a=b",), body=lambda request: request)) as peer:
        async with allswell.AsyncClient() as client:
            assert b"Cookie" not in (await client.get(peer.url)).content
            assert b"Cookie: a=b" in (await client.get(peer.url)).content


def bodies(connection: PeerConnection) -> None:
    """Responses as they come from a server."""
    while request := connection.read_request():
        head, rest = {
            b"/length": (b"200 OK\r\nContent-Length: 5", b"hello"),
            b"/empty": (b"200 OK\r\nContent-Length: 0", b""),
            b"/none": (b"204 No Content", b""),
            b"/304": (b"304 Not Modified\r\nContent-Length: 5", b""),
            b"/head": (b"200 OK\r\nContent-Length: 5", b""),
            b"/gzip": (b"200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked", chunks(gzip.compress(b"hi"))),
            b"/trailers": (b"200 OK\r\nTransfer-Encoding: chunked", b"1\r\na\r\n2\r\nbc\r\n0\r\nEnd: yes\r\n\r\n"),
            b"/moved": (b"302 Found\r\nLocation: /length\r\nContent-Length: 5", b"moved"),
            b"/bad-gzip": (b"200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3", b"abc"),
            b"/cut": (b"200 OK\r\nContent-Length: 5", b"ab"),
            b"/cut-chunk": (b"200 OK\r\nTransfer-Encoding: chunked", b"5\r\nab"),
            b"/nonsense": (b"2000 What", b""),
        }[request.split(b" ", 2)[1]]
        connection.send(b"HTTP/1.1 " + head + b"\r\n\r\n" + rest)
        if b"/cut" in request:
            connection.fin()
            return


def chunks(body: bytes) -> bytes:
    return b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"


PATHS = ("length", "empty", "none", "304", "gzip", "trailers", "moved", "bad-gzip", "cut", "cut-chunk", "nonsense")


@pytest.mark.anyio
@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("read", ["whole", "in a stream", "piece by piece"])
async def test_bodies_of_a_server_are_the_same(path: str, read: str, follow: bool) -> None:
    async def talk(url: str) -> object:
        async with allswell.AsyncClient(follow_redirects=follow, http2=False) as client:
            told_of: list[object] = []
            response = None
            try:
                if read == "whole":
                    response = await client.get(url)
                else:
                    async with client.stream("GET", url) as response:
                        told_of.append(
                            await response.aread()
                            if read == "in a stream"
                            else [piece async for piece in response.aiter_bytes()]
                        )
            except Exception as error:  # noqa: BLE001  # whatever it is, both ways must raise it
                told_of.append(told(error))
            if response is not None:
                told_of.append(told(response))
                told_of.append(outcome(lambda: response.elapsed is not None))
            return told_of

    with scripted_peer(bodies) as peer:
        with ways(False):
            long = await talk(f"{peer.url}/{path}")
        with ways(True):
            assert await talk(f"{peer.url}/{path}") == long


@pytest.mark.anyio
async def test_head_has_no_body_either_way() -> None:
    with scripted_peer(bodies) as peer:
        async with allswell.AsyncClient() as client:
            for short in (False, True):
                with ways(short):
                    response = await client.head(f"{peer.url}/head")
                assert (response.content, response.headers["content-length"]) == (b"", "5")


@pytest.mark.anyio
async def test_cancelled_while_it_reads_a_body() -> None:
    def half(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")
        connection.stall()

    with scripted_peer(half) as peer:
        for short in (False, True):
            with ways(short):
                async with allswell.AsyncClient() as client, client.stream("GET", peer.url) as response:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(response.aread)
                        await anyio.wait_all_tasks_blocked()
                        tasks.cancel_scope.cancel()
                    assert response.is_closed
                    assert response.is_stream_consumed
                    assert response.num_bytes_downloaded == 2
                    with pytest.raises(httpx2.ResponseNotRead):
                        assert response.content
                    with pytest.raises(httpx2.StreamConsumed):
                        await response.aread()
