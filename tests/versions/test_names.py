"""How a caller's words arrive, end to end and in every version: hosts, targets, URLs; and what errors tell of them."""

from __future__ import annotations

import gc
import ssl
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from allswell import AllswellError, AsyncClient, ConnectFailed, ConnectionPool, LocalProtocolError, ProxyHop
from allswell._fields import connect_udp_path, host_and_port, no_url, shown_url
from allswell._messages import RequestHead
from allswell._request.request import Request
from allswell._request.route import destination, proxy_hops
from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, h2_tls
from tests.support.names import names
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers
from tests.versions.heads import VERSIONS

pytestmark = pytest.mark.anyio

Heads = list[tuple[str, str, str]]


@contextmanager
def origin(version: str) -> Iterator[tuple[int, Heads]]:
    """A server's port; and the method, authority and target of each request that it has seen."""
    heads: Heads = []
    if version == "h3":

        def respond(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
            method, authority, path = (fields[name].decode() for name in (b":method", b":authority", b":path"))
            heads.append((method, authority, path))
            connection.respond(stream, 200, b"ok")

        with QuicServer() as quic:
            quic.routes = _Always(respond)
            yield quic.port, heads
    elif version == "h2":
        server = Http2Server()
        with scripted_peer(server, tls=h2_tls()) as peer:
            yield peer.port, heads
        for request in server.requests:
            heads.append((request.headers[":method"], request.headers[":authority"], request.headers[":path"]))
    else:
        with scripted_peer(answers(), tls=True) as peer:
            yield peer.port, heads
        for each in peer.connections[0].requests if peer.connections else []:
            line, *lines = each.decode("latin-1").split("\r\n")
            method, target, _ = line.split(" ")
            [host] = [line[6:] for line in lines if line.lower().startswith("host: ")]
            heads.append((method, host, target))


class _Always(dict[bytes, Any]):
    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def get(self, key: bytes, default: Any = None) -> Any:
        """The handler, whatever is asked for."""
        return self._handler


def client_of(version: str, **settings: Any) -> AsyncClient:
    """A client that speaks this version only."""
    speaks: dict[str, dict[str, Any]] = {"h1": {"http2": False}, "h2": {"http1": False}, "h3": {"http3": "only"}}
    return AsyncClient(verify=certificates().client_context(), **speaks[version], **settings)


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_callers_host_is_what_is_asked_for(version: str) -> None:
    with origin(version) as (port, heads):
        async with client_of(version) as client:
            assert (
                await client.get(f"https://localhost:{port}/a", headers={"Host": "other.example"})
            ).status_code == 200
            assert (await client.get(f"https://localhost:{port}/b")).status_code == 200
    assert heads == [("GET", "other.example", "/a"), ("GET", f"localhost:{port}", "/b")]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_dot_at_the_end_of_a_host_is_none_of_the_certificates(version: str) -> None:
    """RFC 6066 §3. DNS gets it, and so does Host."""
    with origin(version) as (port, heads), names(name_example_="127.0.0.1"):
        async with client_of(version) as client:
            assert (await client.get(f"https://name.example.:{port}/")).status_code == 200
    assert heads == [("GET", f"name.example.:{port}", "/")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("target", ["/é", 5, "foo", b"foo", b"/a b", "", b"*", b"http://u:secret@x/", 1.5, object()])
async def test_a_target_that_is_none(version: str, target: object) -> None:
    """It costs the request and nothing else, and it is an error of httpx2's."""
    with origin(version) as (port, heads):
        async with client_of(version) as client:
            url = f"https://localhost:{port}/fine"
            with pytest.raises(httpx2.LocalProtocolError, match="target") as caught:
                await client.get(url, extensions={"target": target})
            assert isinstance(caught.value.__cause__, LocalProtocolError)
            assert "secret" not in "".join(traceback.format_exception(caught.value))
            assert (await client.get(url)).status_code == 200
            [route] = client.pool.snapshot().routes if client.pool is not None else ()
            assert len(route.connections) == 1
    assert [path for _, _, path in heads] == ["/fine"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_target_that_is_none_in_the_pool(version: str) -> None:
    with origin(version) as (port, heads):
        async with client_of(version) as client:
            pool = client.pool
            assert pool is not None
            to = destination(httpx2.URL(f"https://localhost:{port}/"))
            target: Any
            for target in (b"/\xc3\xa9", 5, "/text", None):
                with pytest.raises(LocalProtocolError, match="target"):
                    await pool.send(Request(RequestHead(b"GET", b"https", to.authority, target, []), to.route))
            assert (await (await pool.request("GET", f"https://localhost:{port}/")).read()) in (b"ok", b"/")
    assert len(heads) == 1


@pytest.mark.parametrize("what", ["method", "protocol"])
@pytest.mark.parametrize("given", ["é", "a b", ""])
async def test_a_method_or_protocol_that_is_none(what: str, given: str) -> None:
    with origin("h2") as (port, heads):
        async with client_of("h2") as client:
            method, extensions = (given, {}) if what == "method" else ("CONNECT", {"protocol": given, "target": b"/"})
            with pytest.raises(httpx2.LocalProtocolError, match=what):
                await client.request(method, f"https://localhost:{port}/", extensions=extensions)
    assert heads == []


# Through a proxy that forwards


@pytest.mark.parametrize("over", ["h1", "h2"])
async def test_forwarded_requests_name_one_origin(over: str, trusting: ssl.SSLContext) -> None:
    """RFC 9112 §3.2.2: a proxy looks at the target, and must ignore any other Host. In HTTP/2 there is but one."""
    with origin(over) as (port, heads):
        hop = ProxyHop("https", "localhost", port, ssl_context=trusting, http2=over == "h2")
        async with AsyncClient(proxy=hop) as client:
            await client.get("http://a.example/x", headers={"Host": "other.example"})
            await client.get("http://a.example/x", extensions={"target": b"http://b.example:81/y"})
            await client.options("http://[fe80::1%25eth0]:82/", extensions={"target": b"*"})
    first, second, third = heads
    if over == "h1":
        assert first == ("GET", "a.example", "http://a.example/x")
        assert second == ("GET", "b.example:81", "http://b.example:81/y")
        assert third == ("OPTIONS", "[fe80::1]:82", "http://[fe80::1]:82")
    else:
        assert first == ("GET", "a.example", "/x")
        assert second == ("GET", "b.example:81", "/y")
        assert third == ("OPTIONS", "[fe80::1]:82", "*")


@pytest.mark.parametrize("target", [b".evil.example/", b"@evil.example/", b":81/", b"x", "é", 5, b"*"])
async def test_a_target_cannot_change_where_a_proxy_forwards_to(target: object) -> None:
    with scripted_peer(answers()) as proxy:
        async with AsyncClient(proxy=proxy.url) as client:
            with pytest.raises(httpx2.LocalProtocolError, match="target"):
                await client.get("http://a.example/", extensions={"target": target})
        assert [connection.received for connection in proxy.connections] in ([], [0])


@pytest.fixture
def trusting() -> ssl.SSLContext:
    return certificates().client_context()


@pytest.mark.parametrize(
    ("host", "authority", "path"),
    [
        ("origin.example", b"origin.example:443", b"/.well-known/masque/udp/origin.example/443/"),
        ("2001:db8::1", b"[2001:db8::1]:443", b"/.well-known/masque/udp/2001%3Adb8%3A%3A1/443/"),
        ("fe80::1%eth0", b"[fe80::1]:443", b"/.well-known/masque/udp/fe80%3A%3A1/443/"),
        ("a%2fb.example", b"a%2fb.example:443", b"/.well-known/masque/udp/a%252fb.example/443/"),
        ("a_b-c~.example", b"a_b-c~.example:443", b"/.well-known/masque/udp/a_b-c~.example/443/"),
        ("a;b", b"a;b:443", b"/.well-known/masque/udp/a%3Bb/443/"),
    ],
)
def test_hosts_as_proxies_are_told_them(host: str, authority: bytes, path: bytes) -> None:
    """RFC 9110 §9.3.6; RFC 9298 §3: what is not unreserved is percent-encoded (RFC 6570 §3.2.2)."""
    assert host_and_port(host, 443) == authority
    assert connect_udp_path(host, 443) == path


# URLs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/path", "https://host/path"),
        ("https://user:secret@host:1/a@b", "https://host:1/a@b"),
        ("https://host//a:b@c/", "https://host//a:b@c/"),
        ("https://user@host?a=b@c", "https://host?a=b@c"),
    ],
)
def test_urls_are_shown_without_userinfo(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:sec/ret@host/", "'https://host/' is not a URL"),
        ("user:sec/ret@host", "'host' is not a URL"),
        ("https://user:se@c#ret@host", "'https://host' is not a URL"),
        ("nonsense", "'nonsense' is not a URL: sec"),
    ],
)
def test_what_is_no_url_is_shown_from_its_last_at_on(url: str, shown: str) -> None:
    assert no_url(url, ValueError("sec")) == shown


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter/2@host/",
        "https://user:hunter#2@host:1/",
        "https://user:hunter?2@host/",
        "https://user/hunter:x@host:y@z/",
        "ftp://hunter:hunter@host/",
        "http://hunter:hunter@host:0/",
        "http://hunter:hunter@[::1%25a b]/",
    ],
)
async def test_errors_tell_neither_user_nor_password(url: str) -> None:
    """Nor do those that are printed with them."""
    async with ConnectionPool() as pool:
        with pytest.raises(AllswellError) as caught:
            await pool.request("GET", url)
    assert "hunter" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["http://ada:hunter/2@proxy", "http://ada:hunter@[::", "ftp://ada:hunter@proxy"])
def test_nor_do_those_about_proxies(url: str) -> None:
    with pytest.raises(ValueError, match="prox") as caught:
        proxy_hops(url)
    assert "hunter" not in "".join(traceback.format_exception(caught.value))


async def test_urls_are_not_remembered_after_the_pool() -> None:
    url = f"http://user:{id(object())}@127.0.0.1:1/"
    before = sys.getrefcount(url)
    pool = ConnectionPool()
    for _ in range(2):
        with pytest.raises(ConnectFailed):
            await pool.request("GET", url)
    await pool.aclose()
    del pool
    gc.collect()
    assert sys.getrefcount(url) == before


async def test_a_pool_remembers_a_bounded_number_of_urls() -> None:
    async with ConnectionPool() as pool:
        for number in range(3000):
            pool._to(f"http://127.0.0.1:1/{number}")
        assert len(pool._destinations) <= 1024
