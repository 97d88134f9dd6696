"""Which bodies can be sent once more: every kind of body meets every reason to send a request again.

A server takes the whole request, then gives a reason for another attempt. What arrives then must be all of the body, or
nothing at all: the caller has the first attempt's error or answer.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import httpx2
import pytest

import allswell
import allswell.httpx
from allswell import AllswellError, AsyncClient, ConnectionPool, ProxyHop, Timeouts
from tests.support.certificates import certificates
from tests.support.h2_script import REFUSED_STREAM, Http2Server, Request, Talk, h2_tls
from tests.support.lag import those_there_are_silent_after
from tests.support.peer import PeerConnection, Script, scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import body_of, response

pytestmark = pytest.mark.anyio

PIECES = [b"first " * 1000, b"second", b"third" * 20_000]
WHOLE = b"".join(PIECES)


# Bodies


class Anew:
    """Starts anew each time."""

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        for piece in PIECES:
            yield piece


class Once:
    """Its own iterator."""

    def __init__(self) -> None:
        self._left = list(PIECES)

    def __aiter__(self) -> Once:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)


class SameAgain:
    """Gives one iterator, again and again."""

    def __init__(self) -> None:
        self._iterator = aiter(Once())

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterator


class Wrapped(httpx2.AsyncByteStream):
    """A stream of the caller's: over anything."""

    def __init__(self) -> None:
        self._inner = Once()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            yield piece


class NoSeek:
    """A file that can only be read."""

    def __init__(self) -> None:
        self._file = io.BytesIO(WHOLE)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


async def generated() -> AsyncIterator[bytes]:
    for piece in PIECES:
        yield piece


class Answer(NamedTuple):
    status: int
    content: bytes
    attempts: int


Send = Callable[[ConnectionPool, str, ExitStack, Path, float], Any]


def of_pool(make: Callable[[], Any]) -> Send:
    async def send(pool: ConnectionPool, url: str, _: ExitStack, path: Path, read: float) -> Answer:
        answer = await pool.request("PUT", url, content=make(), timeouts=Timeouts(connect=30, read=read))
        return Answer(answer.status, await answer.read(), len(answer.attempts))

    return send


async def open_file(pool: ConnectionPool, url: str, _: ExitStack, path: Path, read: float) -> Answer:
    async with await anyio.open_file(path, "rb") as file:
        return await of_pool(lambda: file)(pool, url, _, path, read)  # type: ignore[no-any-return]  # an Answer


async def of_client(pool: ConnectionPool, url: str, read: float, **body: Any) -> Answer:
    async with AsyncClient(pool=pool) as client:
        answer = await client.put(url, **body, timeout=httpx2.Timeout(30, read=read))
        return Answer(answer.status_code, answer.content, len(answer.extensions["attempts"]))


def of_form(make: Callable[[ExitStack, Path], Any]) -> Send:
    async def send(pool: ConnectionPool, url: str, stack: ExitStack, path: Path, read: float) -> Answer:
        return await of_client(pool, url, read, files={"file": make(stack, path)}, data={"name": "value"})

    return send


class Pipe(NoSeek):
    """A file that has ``seek`` and cannot do it."""

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation

    def seekable(self) -> bool:
        return False


async def client_file(pool: ConnectionPool, url: str, _: ExitStack, path: Path, read: float) -> Answer:
    async with await anyio.open_file(path, "rb") as file:
        return await of_client(pool, url, read, content=file)


async def client_anew(pool: ConnectionPool, url: str, _: ExitStack, __: Path, read: float) -> Answer:
    return await of_client(pool, url, read, content=Anew())


async def client_generator(pool: ConnectionPool, url: str, _: ExitStack, __: Path, read: float) -> Answer:
    return await of_client(pool, url, read, content=generated())


async def client_wrapped(pool: ConnectionPool, url: str, _: ExitStack, __: Path, read: float) -> Answer:
    async with AsyncClient(pool=pool) as client:
        request = client.build_request("PUT", url, content=b"")
        request.headers = httpx2.Headers({"Host": request.headers["Host"], "Transfer-Encoding": "chunked"})
        request.stream = Wrapped()
        request.extensions["timeout"]["read"] = read
        answer = await client.send(request)
        return Answer(answer.status_code, answer.content, len(answer.extensions["attempts"]))


#: How each is sent, and whether it can be once more.
BODIES: dict[str, tuple[Send, bool]] = {
    "bytes": (of_pool(lambda: b"small"), True),
    "many bytes": (of_pool(lambda: WHOLE), True),
    "iterable": (of_pool(Anew), True),
    "generator": (of_pool(generated), False),
    "iterator": (of_pool(Once), False),
    "same iterator": (of_pool(SameAgain), False),
    "async file": (open_file, False),
    "client iterable": (client_anew, False),
    "client generator": (client_generator, False),
    "client async file": (client_file, False),
    "client stream": (client_wrapped, False),
    "form bytes": (of_form(lambda stack, path: WHOLE), True),
    "form file": (of_form(lambda stack, path: stack.enter_context(path.open("rb"))), True),
    "form memory": (of_form(lambda stack, path: io.BytesIO(WHOLE)), True),
    "form pipe": (of_form(lambda stack, path: ("name", Pipe())), False),
    "form no seek": (of_form(lambda stack, path: ("name", NoSeek())), False),
}


# Reasons


class Bodies:
    """What arrived, attempt by attempt. The answer to the last tells whether it was the same each time."""

    def __init__(self) -> None:
        self.came: list[bytes] = []
        self._lock = threading.Lock()

    def add(self, body: bytes) -> int:
        """:return: which attempt it was, from 1."""
        with self._lock:
            self.came.append(hashlib.sha256(body).digest())
            return len(self.came)


WARM = "/warm"


def h1(bodies: Bodies, first: bytes, *, again: bytes = b"") -> Script:
    """Answers what it has so far; then, to the first body, this, and ends where it says nothing or that it closes."""

    def script(connection: PeerConnection) -> None:
        while request := connection.read_request():
            if WARM.encode() in request.split(b"\r\n", 1)[0]:
                connection.send(response(b"warm"))
                continue
            if bodies.add(body_of(request)) > 1:
                connection.send(response(b"done"))
                continue
            connection.send(first)
            if not first or b"close" in first:
                connection.send_close_notify()
                connection.fin()
                return

    return script


def h2(bodies: Bodies, refuse: Callable[[Talk, Request], None]) -> Http2Server:
    def handler(talk: Talk, request: Request) -> None:
        if request.path == WARM:
            talk.answer(request)
        elif bodies.add(bytes(request.body)) == 1:
            refuse(talk, request)
        else:
            talk.answer(request, b"done")

    return Http2Server(handler, complete=True)


class Http3(QuicServer):
    """Hands complete bodies to a function."""

    def __init__(self, complete: Callable[[ServedConnection, int, bytes], None]) -> None:
        begun = {b"/put": self._begin, WARM.encode(): lambda connection, stream, _: connection.respond(stream, 200)}
        super().__init__(begun)
        self._complete = complete
        self._bodies: dict[tuple[ServedConnection, int], bytes] = {}

    def _begin(self, connection: ServedConnection, stream: int, _: dict[bytes, bytes]) -> None:
        self._bodies[connection, stream] = b""

    def _on_http(self, connection: ServedConnection, event: Any) -> None:
        super()._on_http(connection, event)
        key = connection, event.stream_id
        if key in self._bodies:
            self._bodies[key] += getattr(event, "data", b"")
            if event.stream_ended:
                self._complete(*key, self._bodies.pop(key))


def h3(bodies: Bodies, refuse: Callable[[ServedConnection, int], None]) -> Http3:
    def complete(connection: ServedConnection, stream: int, body: bytes) -> None:
        if bodies.add(body) == 1:
            refuse(connection, stream)
        else:
            connection.respond(stream, 200, b"done")

    return Http3(complete)


def rejected(connection: ServedConnection, stream: int) -> None:
    connection.quic.reset_stream(stream, 0x10B)


def goes_away(connection: ServedConnection, stream: int) -> None:
    connection.goaway(stream)


def falls_silent(connection: ServedConnection, stream: int) -> None:
    connection.silent = True


CHALLENGE = 'Proxy-Authenticate: Digest realm="here", nonce="n", qop="auth", algorithm=SHA-256'
REFUSALS: dict[str, Any] = {
    "stale": b"",
    "408": response(b"", "Connection: close", status="408 Request Timeout"),
    "421": response(b"", status="421 Misdirected Request"),
    "425": response(b"", status="425 Too Early"),
    "407": response(b"", CHALLENGE, status="407 Proxy Authentication Required"),
    "h2 refused": lambda talk, request: talk.rst(request.stream, REFUSED_STREAM),
    "h2 goaway": lambda talk, request: talk.goaway(request.stream - 2),
    "h3 rejected": rejected,
    "h3 goaway": goes_away,
    "h3 silence": falls_silent,
}


@contextmanager
def reason(kind: str, bodies: Bodies) -> Iterator[tuple[str, ConnectionPool]]:
    """A server, and a pool for it."""
    refusal = REFUSALS[kind]
    settings: dict[str, Any] = {"ssl_context": certificates().client_context(), "max_connections": 10}
    if kind.startswith("h2"):
        with scripted_peer(h2(bodies, refusal), tls=h2_tls()) as peer:
            yield peer.url, ConnectionPool(**settings)
    elif kind.startswith("h3"):
        with h3(bodies, refusal) as server:
            yield f"https://127.0.0.1:{server.port}", ConnectionPool(http3="only", **settings)
    else:
        with scripted_peer(h1(bodies, refusal)) as peer:
            if kind == "407":
                hop = ProxyHop("http", peer.host, peer.port, httpx2.DigestAuth("ada", "lovelace"))
                yield "http://origin.test", ConnectionPool(proxies=(hop,), **settings)
            else:
                yield peer.url, ConnectionPool(**settings)


#: A silent server takes its time to be found out.
FEW = ("many bytes", "iterable", "async file", "form memory", "form no seek")


@pytest.mark.parametrize(
    ("kind", "body"), [(kind, body) for kind in REFUSALS for body in (FEW if kind == "h3 silence" else BODIES)]
)
async def test_all_of_it_or_nothing(kind: str, body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "body"
    path.write_bytes(WHOLE)
    send, again = BODIES[body]
    bodies = Bodies()
    answer: Answer | None = None
    with reason(kind, bodies) as (url, pool), ExitStack() as stack:
        async with pool:
            await (await pool.request("GET", f"{url}{WARM}")).read()
            if kind == "h3 silence":
                those_there_are_silent_after(monkeypatch)
            try:
                # (Where it should not go again, it waits for what does not come.)
                read = 3 if kind == "h3 silence" and not again else 30
                answer = await send(pool, f"{url}/put", stack, path, read)
            except (AllswellError, httpx2.HTTPError):
                assert not again
    if again:
        assert answer is not None
        assert (answer.status, answer.content) == (200, b"done")
        assert len(bodies.came) == 2
        assert bodies.came[0] == bodies.came[1]
    else:
        assert len(bodies.came) == 1
        assert (answer.status if answer is not None else None) == (int(kind) if kind.isdecimal() else None)


# What the client sends once more (httpx2's redirects, and flows of its auth)


CLIENTS: dict[str, Callable[[], Any]] = {
    "allswell": lambda: AsyncClient(follow_redirects=True),
    "httpx2": lambda: httpx2.AsyncClient(transport=allswell.AsyncTransport(), follow_redirects=True),
    "httpx": lambda: httpx.AsyncClient(transport=allswell.httpx.AsyncTransport(), follow_redirects=True),
}
CONTENTS: dict[str, tuple[Callable[[Any], dict[str, Any]], bool]] = {
    "bytes": (lambda _: {"content": WHOLE}, True),
    "iterable": (lambda _: {"content": Anew()}, True),
    "generator": (lambda _: {"content": generated()}, False),
    "iterator": (lambda _: {"content": Once()}, False),
    "async file": (lambda file: {"content": file}, False),
    "form memory": (lambda _: {"files": {"file": io.BytesIO(WHOLE)}}, True),
    "form no seek": (lambda _: {"files": {"file": ("name", NoSeek())}}, False),
    "form and a pipe": (lambda _: {"files": [("a", io.BytesIO(b"a")), ("b", ("name", Pipe()))]}, False),
}
DIGEST = 'WWW-Authenticate: Digest realm="here", nonce="n", qop="auth", algorithm=SHA-256'
FIRST: dict[str, bytes] = {
    "307": response(b"", "Location: /there", status="307 Temporary Redirect"),
    "308": response(b"", "Location: /there", status="308 Permanent Redirect"),
    "401": response(b"", DIGEST, status="401 Unauthorized"),
}


@pytest.mark.parametrize("kind", FIRST)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", CLIENTS)
async def test_the_client_sends_all_of_it_or_nothing(name: str, content: str, kind: str, tmp_path: Path) -> None:
    library = httpx if name == "httpx" else httpx2
    path = tmp_path / "body"
    path.write_bytes(WHOLE)
    make, again = CONTENTS[content]
    bodies = Bodies()
    with scripted_peer(h1(bodies, FIRST[kind])) as peer:
        async with CLIENTS[name]() as client, await anyio.open_file(path, "rb") as file:
            auth = library.DigestAuth("ada", "lovelace") if kind == "401" else None
            if again:
                answer = await client.put(f"{peer.url}/here", auth=auth, **make(file))
                assert (answer.status_code, answer.content) == (200, b"done")
                assert bodies.came == [bodies.came[0]] * 2
            else:
                with pytest.raises(library.StreamConsumed):
                    await client.put(f"{peer.url}/here", auth=auth, **make(file))
                assert len(bodies.came) == 1


async def test_a_body_of_which_nothing_was_taken_follows_a_redirect() -> None:
    """The server was asked first, and sends the client elsewhere (RFC 9110 §10.1.1)."""
    came: list[bytes] = []

    def script(connection: PeerConnection) -> None:
        if b"/here" in connection.read_head():
            connection.send(FIRST["307"].replace(b"Location", b"Connection: close\r\nLocation"))
            connection.fin()
            return
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        came.append(connection.read_body(b"x: y\r\nTransfer-Encoding: chunked\r\n"))
        connection.send(response(b"done"))

    with scripted_peer(script) as peer:
        async with AsyncClient(follow_redirects=True) as client:
            answer = await client.put(f"{peer.url}/here", content=generated(), headers={"Expect": "100-continue"})
            assert answer.content == b"done"
    assert sum(len(each) for each in came) > len(WHOLE)
