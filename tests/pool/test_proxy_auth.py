"""Proxies that ask who we are: Digest (RFC 7616) through httpx2's auth, for tunnels and for what is forwarded."""

from __future__ import annotations

import hashlib
import re
import socket
from typing import Any

import anyio
import httpx2
import pytest

from allswell import AsyncClient, ConnectFailed, ConnectionPool, ProxyHop, ProxyRefused, Timeout, Timeouts
from allswell.testing import Origin
from tests.support.certificates import certificates
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import Request, Talk, h2_tls
from tests.support.h3_proxy import Http3Proxy
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.peer import PeerConnection, Script, scripted_peer
from tests.support.proxies import ESTABLISHED, relay
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers, says

pytestmark = pytest.mark.anyio

SECRET = "lovelace"


class Digest:
    """The proxy's side, by hand (RFC 7616 §3.4.1).

    :ivar accepted: of each request that was: its nonce, and how often that was used.
    """

    def __init__(self, algorithm: str = "SHA-256", stale_after: int = 1000) -> None:
        self.accepted: list[tuple[str, str]] = []
        self.refused = 0
        self._algorithm = algorithm
        self._hash = {"SHA-256": hashlib.sha256, "MD5": hashlib.md5}[algorithm]
        self._stale_after = stale_after
        self._nonce = 0

    @property
    def challenge(self) -> str:
        self.refused += 1
        self._nonce += 1
        return f'Digest realm="here", nonce="n{self._nonce}", qop="auth", algorithm={self._algorithm}, opaque="o"'

    def accepts(self, method: str, target: str, field: str | None) -> bool:
        if field is None or not field.startswith("Digest "):
            return False
        said = {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|[^\s,]+)', field)}
        assert said["uri"] == target
        assert said["opaque"] == "o"
        if said["nonce"] != f"n{self._nonce}" or int(said["nc"], 16) > self._stale_after:
            return False
        first = self._of(f"ada:here:{SECRET}")
        second = self._of(f"{method}:{target}")
        good = self._of(":".join([first, said["nonce"], said["nc"], said["cnonce"], "auth", second]))
        right: bool = said["response"] == good
        if right:
            self.accepted.append((said["nonce"], said["nc"]))
        return right

    def _of(self, text: str) -> str:
        return self._hash(text.encode()).hexdigest()


def head_of(connection: PeerConnection) -> tuple[str, str, str | None]:
    head = connection.read_head().decode()
    if not head:
        return "", "", None
    method, target, _ = head.split(" ", 2)
    field = re.search(r"(?i)\r\nproxy-authorization: ([^\r]*)", head)
    return method, target, field[1] if field else None


def h1_proxy(digest: Digest) -> Script:
    def script(connection: PeerConnection) -> None:
        while (asked := head_of(connection))[0]:
            if not digest.accepts(*asked):
                refusal = f"HTTP/1.1 407 Who\r\nProxy-Authenticate: {digest.challenge}\r\nContent-Length: 3\r\n\r\nwho"
                connection.send(refusal.encode())
            elif asked[0] == "CONNECT":
                host, _, port = asked[1].rpartition(":")
                origin = socket.create_connection((host, int(port)), timeout=10)
                connection.send(ESTABLISHED)
                relay(connection, origin)
                return
            else:
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    return script


def h2_proxy(digest: Digest) -> Http2Proxy:
    def decide(talk: Talk, request: Request) -> bool:
        headers = request.headers
        target = headers.get(":path") or headers[":authority"]
        if digest.accepts(headers[":method"], target, headers.get("proxy-authorization")):
            return False
        talk.answer(request, b"who", status=407, fields=[("proxy-authenticate", digest.challenge)])
        return True

    return Http2Proxy(decide, settings={8: 1})


def h3_proxy(digest: Digest) -> Http3Proxy:
    def decide(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> bool:
        target = fields.get(b":path") or fields[b":authority"]
        field = fields.get(b"proxy-authorization")
        if digest.accepts("CONNECT", target.decode(), None if field is None else field.decode()):
            return False
        connection.respond(stream, 407, b"who", (b"proxy-authenticate", digest.challenge.encode()))
        return True

    return Http3Proxy(decide)


def hop_to(scheme: str, port: int, password: str = SECRET, **settings: Any) -> ProxyHop:
    trust = certificates().client_context() if scheme == "https" else None
    auth = httpx2.DigestAuth("ada", password)
    host = "localhost" if scheme == "https" else "127.0.0.1"
    return ProxyHop(scheme, host, port, auth, ssl_context=trust, **settings)  # type: ignore[arg-type]  # http(s)


def pool_through(hop: ProxyHop, to: Origin | None = None, **settings: Any) -> ConnectionPool:
    trust = (to or certificates()).client_context()
    return ConnectionPool(ssl_context=trust, proxies=(hop,), **settings)


async def thrice(pool: ConnectionPool, origin: Origin) -> None:
    """Each over a tunnel of its own."""
    for _ in range(3):
        response = await pool.request("GET", f"{origin.url}/x", headers=[(b"Connection", b"close")])
        assert await response.read() == b"ok"
    assert [(each.connection, each.target) for each in origin.requests] == [(1, "/x"), (2, "/x"), (3, "/x")]


NONCES = [("n1", "00000001"), ("n1", "00000002"), ("n1", "00000003")]


@pytest.mark.parametrize("algorithm", ["SHA-256", "MD5"])
@pytest.mark.parametrize("kind", ["http", "https", "https-h2"])
async def test_digest_for_tunnels(kind: str, algorithm: str) -> None:
    """The first is refused; then its nonce is used again, and counted."""
    digest = Digest(algorithm)
    script = h2_proxy(digest) if kind == "https-h2" else h1_proxy(digest)
    tls = h2_tls() if kind == "https-h2" else kind == "https"
    with Origin(versions=["h1"]) as origin, scripted_peer(script, tls=tls) as proxy:
        async with pool_through(hop_to(kind.partition("-")[0], proxy.port), origin) as pool:
            await thrice(pool, origin)
        assert digest.accepted == NONCES
        assert digest.refused == 1
        if kind == "https-h2":
            assert len(proxy.connections) == 1


async def test_digest_over_http3() -> None:
    digest = Digest()
    with Origin(versions=["h1"]) as origin, h3_proxy(digest) as proxy:
        async with pool_through(hop_to("https", proxy.port, http3="only"), origin, grace=1) as pool:
            await thrice(pool, origin)
        assert digest.accepted == NONCES
        assert len(proxy.connections) == 1


async def test_digest_for_connect_udp() -> None:
    digest = Digest()
    with h3_proxy(digest) as proxy, QuicServer() as origin:
        async with pool_through(hop_to("https", proxy.port, http3="only"), http3="only", grace=1) as pool:
            response = await pool.request("GET", f"https://127.0.0.1:{origin.port}/hello")
            assert await response.read() == b"hello"
        assert digest.accepted == NONCES[:1]


async def test_digest_for_forwarded_requests() -> None:
    """Over one connection, bodies included where they can be sent again."""
    digest = Digest()
    with scripted_peer(h1_proxy(digest)) as proxy:
        async with AsyncClient(proxy=hop_to("http", proxy.port)) as client:
            assert (await client.get("http://one.example/a?b=c")).text == "ok"
            assert (await client.options("http://two.example:81/")).text == "ok"
        assert digest.accepted == NONCES[:2]
        assert len(proxy.connections) == 1


async def test_a_nonce_grows_stale() -> None:
    digest = Digest(stale_after=2)
    with Origin(versions=["h1"]) as origin, scripted_peer(h1_proxy(digest)) as proxy:
        async with pool_through(hop_to("http", proxy.port), origin) as pool:
            await thrice(pool, origin)
        assert digest.accepted == [*NONCES[:2], ("n2", "00000001")]
        assert digest.refused == 2


@pytest.mark.parametrize("kind", ["http", "https-h2"])
async def test_a_second_refusal_is_an_error(kind: str) -> None:
    digest = Digest()
    script, tls = (h1_proxy(digest), False) if kind == "http" else (h2_proxy(digest), h2_tls())
    with scripted_peer(script, tls=tls) as proxy:
        hop = hop_to(kind.partition("-")[0], proxy.port, "wrong-one")
        async with pool_through(hop) as pool:
            with pytest.raises(ProxyRefused) as caught:
                await pool.request("GET", "https://origin.example/")
        assert (caught.value.status, caught.value.body, digest.refused) == (407, b"who", 2)
        for shown in (str(caught.value), repr(hop), repr(caught.value.headers)):
            assert "wrong-one" not in shown
            assert "ada" not in shown


async def test_a_second_refusal_of_a_forwarded_request_is_a_response() -> None:
    digest = Digest()
    with scripted_peer(h1_proxy(digest)) as proxy:
        async with pool_through(hop_to("http", proxy.port, "wrong-one")) as pool:
            response = await pool.request("GET", "http://one.example/")
            assert (response.status, await response.read(), digest.refused) == (407, b"who", 2)


@pytest.mark.parametrize(
    ("challenge", "words"),
    [
        (b"Digest realm=a", "Malformed Digest"),
        (b"Digest realm", "not enough values"),
        (b'Digest realm="a", nonce="b", algorithm=ROT13', "Unsupported digest auth algorithm 'ROT13'"),
        (b'Digest realm="a", nonce="b", qop="auth-int"', "auth-int"),
        (b'Digest realm="a", nonce="b", qop="x"', "Unexpected qop"),
    ],
)
async def test_a_challenge_that_makes_no_sense(challenge: bytes, words: str) -> None:
    answer = b"HTTP/1.1 407 Who\r\nProxy-Authenticate: %s\r\nContent-Length: 0\r\n\r\n" % challenge
    with scripted_peer(says(answer)) as proxy:
        async with pool_through(hop_to("http", proxy.port)) as pool:
            for scheme in ("https", "http"):
                with pytest.raises(ConnectFailed, match=words) as caught:
                    await pool.request("GET", f"{scheme}://origin.example/")
                assert caught.value.phase == "proxy"
                assert str(proxy.port) in str(caught.value)
                assert SECRET not in str(caught.value)


async def test_a_refusal_that_cannot_be_answered_leaves_nothing_under_way() -> None:
    """Its body has not come, and nobody is left who would read it."""
    answer = b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Digest realm\r\nContent-Length: 100000\r\n\r\n"
    with scripted_peer(says(answer)) as proxy:
        async with pool_through(hop_to("http", proxy.port)) as pool:
            with pytest.raises(ConnectFailed, match="not enough values") as caught:
                await pool.request("GET", "http://origin.example/")
            assert caught.value.__traceback__ is not None  # which keeps what was on its way
            assert "0 exchanges" in str(pool.snapshot())


async def test_another_scheme_is_a_refusal() -> None:
    answer = b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Negotiate\r\nContent-Length: 0\r\n\r\n"
    with scripted_peer(says(answer)) as proxy:
        async with pool_through(hop_to("http", proxy.port)) as pool:
            with pytest.raises(ProxyRefused, match="407 Who"):
                await pool.request("GET", "https://origin.example/")


async def test_a_body_that_cannot_be_sent_again() -> None:
    digest = Digest()

    async def once() -> Any:
        yield b"abc"

    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(
            f"HTTP/1.1 407 Who\r\nProxy-Authenticate: {digest.challenge}\r\nContent-Length: 0\r\n\r\n".encode()
        )

    with scripted_peer(script) as proxy:
        async with pool_through(hop_to("http", proxy.port)) as pool:
            assert (await pool.request("POST", "http://one.example/", content=once())).status == 407
        assert digest.refused == 1


async def test_basic_by_httpx2() -> None:
    """Any ``Auth`` does; what it would say to an origin is said to the proxy."""
    with scripted_peer(answers()) as proxy:
        hop = ProxyHop("http", "127.0.0.1", proxy.port, httpx2.BasicAuth("ada", "l"))
        async with pool_through(hop) as pool:
            assert (await pool.request("GET", "http://one.example/")).status == 200
        [head] = proxy.connections[0].requests
        assert b"\r\nProxy-Authorization: Basic YWRhOmw=\r\n" in head
        assert b"\r\nAuthorization" not in head


def test_socks_knows_no_digest() -> None:
    with pytest.raises(ValueError, match="must be a pair of name and password"):
        ProxyHop("socks5", "a", 1, httpx2.DigestAuth("ada", SECRET))


class Stops(httpx2.Auth):
    """Basic, but that it wants the program to end when it is first asked, before it says anything or behind a 407."""

    def __init__(self, error: BaseException, *, late: bool) -> None:
        self._errors, self._late = [error], late

    def auth_flow(self, request: httpx2.Request) -> Any:
        if not self._late:
            self._stop()
            request.headers["Authorization"] = "Basic YWRhOmw="
        yield request
        self._stop()
        request.headers["Authorization"] = "Basic YWRhOmw="
        yield request

    def _stop(self) -> None:
        if self._errors:
            raise self._errors.pop()


def asks_once(connection: PeerConnection) -> None:
    """Refuses those that do not say who they are, and relays the others."""
    while (asked := head_of(connection))[0]:
        if asked[2] is None:
            connection.send(b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
        else:
            host, port = asked[1].split(":")
            origin = socket.create_connection((host, int(port)), timeout=10)
            connection.send(ESTABLISHED)
            relay(connection, origin)
            return


@pytest.mark.parametrize("error", [SystemExit(3), pytest.fail.Exception("no"), ZeroDivisionError()], ids=repr)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "behind a 407"])
async def test_what_wants_the_program_to_end_reaches_the_request_and_harms_nobody_else(
    late: bool, error: BaseException
) -> None:
    """It ends the dial, and no event loop: the next one is made for the other request, in the same place."""
    told: list[BaseException | int] = []
    with Origin(versions=["h1"]) as origin, scripted_peer(asks_once) as proxy:
        hop = ProxyHop("http", "127.0.0.1", proxy.port, Stops(error, late=late))
        async with pool_through(hop, origin, max_connections=1, http2=False) as pool:

            async def get() -> None:
                try:
                    told.append((await pool.request("GET", origin.url)).status)
                except BaseException as raised:  # noqa: BLE001  it is what is asserted
                    told.append(raised)

            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(get)
            assert 200 in told
            [raised] = [each for each in told if each != 200]
            if isinstance(error, Exception):
                assert isinstance(raised, ConnectFailed)
                assert raised.__cause__ is error
            else:
                assert raised is error
            assert pool.snapshot().dials == pool.snapshot().waiting == 0
            assert (await pool.request("GET", origin.url)).status == 200


async def test_what_wants_the_program_to_end_in_a_race_reaches_the_request() -> None:
    """The proxy behind this one is asked for each address of the host: attempts have tasks of their own."""
    hops = (ProxyHop("http", "127.0.0.1", 1, Stops(error := SystemExit(3), late=False)), ProxyHop("socks5", "a", 1))
    async with ConnectionPool(proxies=hops) as pool:
        with pytest.raises(SystemExit) as caught:
            await pool.request("GET", "https://localhost/")
        assert caught.value is error


async def test_the_total_timeout_is_for_both_tries() -> None:
    """The refusal takes most of the time; what is left is not enough for the rest."""
    digest = Digest()
    proxy = h1_proxy(digest)

    def slow(connection: PeerConnection) -> None:
        read_head = connection.read_head

        def late() -> bytes:
            head = read_head()
            connection.pause(3.2)
            return head

        connection.read_head = late  # type: ignore[method-assign]
        proxy(connection)

    with scripted_peer(slow) as peer:
        async with pool_through(hop_to("http", peer.port)) as pool:
            with pytest.raises(Timeout) as caught:
                await pool.request("GET", "http://origin.example/", timeouts=Timeouts(total=6))
            assert caught.value.phase == "total"
    assert digest.refused == 1
