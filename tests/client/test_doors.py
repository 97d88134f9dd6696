"""What is given to the wrong door: the error comes at once, and says what is wanted."""

from __future__ import annotations

import io
import math
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest

import allswell
import allswell.httpx
from allswell._config import PoolSettings, TransportSettings
from allswell.testing import Origin, RequestReceived
from tests.support.certificates import certificates
from tests.support.peer import scripted_peer
from tests.support.peer_connection import PeerConnection
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio

#: Each makes something with an object of the wrong library; and what the error says.
MADE: dict[str, tuple[Callable[[], object], str]] = {
    "client, timeout": (
        lambda: allswell.AsyncClient(timeout=httpx.Timeout(1)),  # type: ignore[arg-type]  # that is the test
        r"^timeout must be httpx2\.Timeout, but httpx\.Timeout belongs to httpx$",
    ),
    "client, a pool's timeouts": (
        lambda: allswell.AsyncClient(timeout=allswell.Timeouts()),  # type: ignore[arg-type]  # that is the test
        r"^timeout must be httpx2\.Timeout, but allswell\.Timeouts belongs to pools$",
    ),
    "client, an error as timeout": (
        lambda: allswell.AsyncClient(timeout=allswell.Timeout("late", phase="read")),  # type: ignore[arg-type]  # that too
        r"^timeout must be httpx2\.Timeout, but allswell\.Timeout is an error$",
    ),
    "client, the class of that error": (
        lambda: allswell.AsyncClient(timeout=allswell.Timeout),  # type: ignore[arg-type]  # that is the test
        r"^timeout must be httpx2\.Timeout, but allswell\.Timeout is an error$",
    ),
    "client, a class": (
        lambda: allswell.AsyncClient(timeout=httpx2.Timeout),  # type: ignore[arg-type]  # that is the test
        r"^timeout must be an object of httpx2\.Timeout, not the class$",
    ),
    "client, limits": (
        lambda: allswell.AsyncClient(limits=httpx.Limits()),  # type: ignore[arg-type]  # that is the test
        r"limits must be httpx2\.Limits, but httpx\.Limits",
    ),
    "client, auth": (
        lambda: allswell.AsyncClient(auth=httpx.BasicAuth("a", "b")),  # type: ignore[arg-type]  # that is the test
        r"auth must be httpx2\.BasicAuth.*, but httpx\.BasicAuth",
    ),
    "client, proxy": (
        lambda: allswell.AsyncClient(proxy=httpx.Proxy("http://a")),  # type: ignore[arg-type]  # that is the test
        r"proxy must be httpx2\.Proxy.*, but httpx\.Proxy",
    ),
    "client, proxies": (
        lambda: allswell.AsyncClient(proxy=["http://a", httpx.URL("http://b")]),  # type: ignore[list-item]  # that too
        r"proxy must be httpx2\.URL.*, but httpx\.URL",
    ),
    "client, transport": (
        lambda: allswell.AsyncClient(transport=httpx.AsyncHTTPTransport()),  # type: ignore[arg-type]  # that is the test
        r"transport must be httpx2\.AsyncHTTPTransport.*, but httpx\.AsyncHTTPTransport",
    ),
    "client, our other transport": (
        lambda: allswell.AsyncClient(transport=allswell.httpx.AsyncTransport()),  # type: ignore[arg-type]  # that too
        r"transport must be httpx2\.AsyncBaseTransport.*, but allswell\.httpx\.AsyncTransport",
    ),
    "client, mounts": (
        lambda: allswell.AsyncClient(mounts={"all://": httpx.MockTransport(print)}),  # type: ignore[dict-item,arg-type]  # that too
        r"mounts must be httpx2.*, but httpx\.MockTransport",
    ),
    "client, base URL": (
        lambda: allswell.AsyncClient(base_url=httpx.URL("http://a")),  # type: ignore[arg-type]  # that is the test
        r"base_url must be httpx2\.URL, but httpx\.URL",
    ),
    "client, pool": (
        lambda: allswell.AsyncClient(pool=httpx2.AsyncHTTPTransport()),  # type: ignore[arg-type]  # that is the test
        r"^pool must be allswell\.ConnectionPool, not httpx2\.AsyncHTTPTransport$",
    ),
    "transport, limits": (
        lambda: allswell.AsyncTransport(limits=httpx.Limits()),  # type: ignore[arg-type]  # that is the test
        r"limits must be httpx2\.Limits, but httpx\.Limits",
    ),
    "transport for httpx, limits": (
        lambda: allswell.httpx.AsyncTransport(limits=httpx2.Limits()),  # type: ignore[arg-type]  # that is the test
        r"limits must be httpx\.Limits, but httpx2\.Limits belongs to httpx2",
    ),
    "transport for httpx, proxy": (
        lambda: allswell.httpx.AsyncTransport(proxy=httpx2.Proxy("http://a")),  # type: ignore[arg-type]  # that too
        r"proxy must be httpx\.Proxy, but httpx2\.Proxy",
    ),
    "proxy's auth": (
        lambda: allswell.ProxyHop("http", "a", 1, auth=httpx.DigestAuth("a", "b")),  # type: ignore[arg-type]  # that too
        r"auth must be httpx2\.DigestAuth, but httpx\.DigestAuth",
    ),
    "proxy's auth, text": (
        lambda: allswell.ProxyHop("http", "a", 1, auth=("name", "secret")),  # type: ignore[arg-type]  # that is the test
        r"^auth must be a pair of bytes, an httpx2\.Auth, or None$",
    ),
    "proxy's headers": (
        lambda: allswell.ProxyHop("http", "a", 1, headers={"a": "b"}),  # type: ignore[arg-type]  # that is the test
        r"^headers must be a tuple of pairs of bytes$",
    ),
    "proxy's headers, text": (
        lambda: allswell.ProxyHop("http", "a", 1, headers=(("a", "b"),)),  # type: ignore[arg-type]  # that is the test
        r"^headers must be a tuple of pairs of bytes$",
    ),
    "QUIC's store": (
        lambda: allswell.QuicConfig(store="tickets"),  # type: ignore[arg-type]  # that is the test
        r"^store must be an object with the methods of allswell\.QuicStore, not str$",
    ),
    "pool, settings": (
        lambda: allswell.ConnectionPool({"retries": 1}),  # type: ignore[arg-type]  # that is the test
        r"config must be allswell\.PoolConfig, not dict",
    ),
    "pool, a misspelt setting": (
        lambda: allswell.ConnectionPool(max_conections=1),  # type: ignore[call-arg]  # that is the test
        r"ConnectionPool has no setting 'max_conections'",
    ),
    "transport, a misspelt setting": (
        lambda: allswell.AsyncTransport(htp3=True),  # type: ignore[call-arg]  # that is the test
        r"AsyncTransport has no setting 'htp3'",
    ),
    "transport for httpx, a misspelt setting": (
        lambda: allswell.httpx.AsyncTransport(htp3=True),  # type: ignore[call-arg]  # that is the test
        r"AsyncTransport has no setting 'htp3'",
    ),
    "client, a misspelt setting": (
        lambda: allswell.AsyncClient(htp3=True),  # type: ignore[call-arg]  # that is the test
        "htp3",
    ),
}


@pytest.mark.parametrize("case", MADE)
async def test_what_is_made_of_the_wrong_thing(case: str) -> None:
    make, words = MADE[case]
    with pytest.raises(TypeError, match=words):
        make()


#: Values of settings that have no meaning; the error, and what it says.
VALUES: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_connections": 0}, ValueError, "max_connections must be at least 1, or None, not 0"),
    ({"max_connections": math.nan}, ValueError, "max_connections must be a number, not NaN"),
    ({"max_connections_per_route": -1}, ValueError, "max_connections_per_route must be at least 1, or None, not -1"),
    (
        {"max_keepalive_connections": "9"},
        TypeError,
        "max_keepalive_connections must be a number or None, not str",
    ),
    ({"keepalive_expiry": math.nan}, ValueError, "keepalive_expiry must be a number, not NaN"),
    ({"grace": None}, TypeError, "grace must be a number, not None"),
    ({"grace": -1}, ValueError, "grace must be at least 0, not -1"),
    ({"retries": -1}, ValueError, "retries must be at least 0, not -1"),
    ({"pipelining": "3"}, TypeError, "pipelining must be a whole number, not str"),
    ({"max_header_size": 0}, ValueError, "max_header_size must be at least 1, not 0"),
    ({"stream_window": 2**31}, ValueError, "stream_window must be at most 2147483647, not 2147483648"),
    ({"connection_window": 0}, ValueError, "connection_window must be at least 1, not 0"),
    ({"expect_continue_timeout": None}, TypeError, "expect_continue_timeout must be a number, not None"),
    ({"ping_interval": 0}, ValueError, "ping_interval must be more than 0, or None, not 0"),
    ({"ping_timeout": -1}, ValueError, "ping_timeout must be at least 0, not -1"),
    ({"http3": "onyl"}, ValueError, "http3 must be one of False, True, 'only', not 'onyl'"),
    ({"coalescing": "origins"}, ValueError, "coalescing must be one of False, True, 'origin', not 'origins'"),
    ({"quic": None}, TypeError, "quic must be allswell.QuicConfig, not None"),
    ({"ssl_context": True}, TypeError, "ssl_context must be ssl.SSLContext, not bool"),
    ({"ssl_context": ssl.SSLContext}, TypeError, "ssl_context must be ssl.SSLContext, not type"),
    ({"local_address": 3}, TypeError, "local_address must be str, not int"),
    ({"local_address": "localhost"}, ValueError, "local_address must be an IP address, not 'localhost'"),
    ({"uds": Path("/socket")}, TypeError, r"uds must be str, not pathlib\.PosixPath"),
    ({"alt_svc": "alt-svc.txt"}, TypeError, r"with the methods of allswell\.AltSvcStore, not str"),
    ({"alt_svc": allswell.AltSvcMemory}, TypeError, r"with the methods of allswell\.AltSvcStore, not type"),
    ({"proxies": ["http://a.example"]}, TypeError, r"proxies must be allswell\.ProxyHop, not str"),
    ({"socket_options": [3]}, TypeError, "socket_options must be a collection, not int"),
    ({"nameservers": "192.0.2.1"}, TypeError, "nameservers must be a collection, not str"),
    ({"socket_options": b"x"}, TypeError, "socket_options must be a collection, not bytes"),
    ({"http3_origins": "https://a.example"}, TypeError, "http3_origins must be a collection, not str"),
    ({"http3_origins": ["a.example"]}, ValueError, "'a.example' is not an https origin, such as "),
    ({"http3_origins": ["http://a.example"]}, ValueError, "'http://a.example' is not an https origin"),
    ({"http3_origins": ["https://a.example/b"]}, ValueError, "'https://a.example/b' is not an https origin"),
    ({"http3_origins": ["https://u:secret@a.example"]}, ValueError, "^'a.example' is not an https origin"),
    ({"http3_origins": ["https://a.example:x"]}, ValueError, "'https://a.example:x' is not an https origin"),
    ({"http3_origins": [7]}, ValueError, "'7' is not an https origin"),
    ({"on_connection_end": 3}, TypeError, "on_connection_end must be callable, and int is not"),
    ({"on_connection_end": anyio.sleep}, TypeError, "on_connection_end must be an ordinary function"),
]


@pytest.mark.parametrize(("settings", "error", "words"), VALUES, ids=[next(iter(each[0])) for each in VALUES])
async def test_values_without_meaning(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        allswell.PoolConfig(**settings)
    with pytest.raises(error, match=words):
        allswell.ConnectionPool(**settings)


async def test_tls_contexts_of_another_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """``truststore`` may put its class in the place of Python's after a program has made a context. Others wrap one."""

    class Wrapped:
        def __getattr__(self, name: str) -> Any:
            if name in ("verify_mode", "check_hostname"):
                raise AttributeError(name)  # it has words of its own for these
            return getattr(context, name)

    async with Origin() as origin:
        context = origin.client_context()
        monkeypatch.setattr(ssl, "SSLContext", type("Injected", (ssl.SSLContext,), {}))
        each: Any
        for each in (context, Wrapped()):
            async with allswell.AsyncClient(verify=each) as client:
                assert (await client.get(origin.url)).text == "ok"
            assert allswell.ProxyHop("https", "a.example", 443, ssl_context=each).ssl_context is each


async def test_values_without_meaning_for_a_client() -> None:
    with pytest.raises(ValueError, match="max_connections must be at least 1"):
        allswell.AsyncClient(limits=httpx2.Limits(max_connections=0))
    with pytest.raises(TypeError, match="http3_origins must be a collection"):
        allswell.AsyncClient(http3_origins="https://a.example")
    with pytest.raises(TypeError, match="nameservers must be a collection"):
        allswell.AsyncClient(nameservers="192.0.2.1")
    with pytest.raises(ValueError, match="total_timeout must be a number, not NaN"):
        allswell.AsyncClient(total_timeout=math.nan)
    with pytest.raises(ValueError, match="scheme must be one of 'http', 'https', 'socks5', 'socks5h', not 'socks4'"):
        allswell.ProxyHop("socks4", "a.example", 1)  # type: ignore[arg-type]  # that is the test
    with pytest.raises(ValueError, match="idle_timeout must be at least 0, not -1"):
        allswell.QuicConfig(idle_timeout=-1)


async def test_limits_that_are_no_integers() -> None:
    """httpx2 takes them, and ``inf`` says what is meant."""
    limits = httpx2.Limits(max_connections=float("inf"), max_keepalive_connections=10.0)  # type: ignore[arg-type]  # that is the test
    with scripted_peer(answers(body=bytes)) as peer:
        async with allswell.AsyncClient(limits=limits) as client:
            assert (await client.get(peer.url)).status_code == 200


def test_origins_in_another_spelling() -> None:
    config = allswell.PoolConfig(http3_origins=["https://A.Example:443/", "https://[::1]:8443"])
    assert config.http3_origins == {"https://a.example", "https://[::1]:8443"}


@pytest.mark.parametrize(("wrong", "error"), [("5", TypeError), (math.nan, ValueError)])
async def test_timeouts_that_are_no_time(wrong: Any, error: type[Exception]) -> None:
    for name in ("connect", "read", "write", "pool", "total"):
        with pytest.raises(error, match=f"{name} must be a number"):
            allswell.Timeouts(**{name: wrong})
    async with allswell.AsyncClient(timeout=wrong) as client:
        with pytest.raises(error, match="connect must be a number"):
            await client.get("http://a")
        with pytest.raises(error, match="timeout must be a number"):
            await client.aclose(wrong)
        with pytest.raises(error, match="timeout must be a number"):
            await client.drain(wrong)


async def test_time_that_is_over_already() -> None:
    """As a caller's own deadline leaves it: it is no error, but nothing is waited for."""
    with scripted_peer(PeerConnection.read_until_end) as peer:
        async with allswell.ConnectionPool() as pool:
            with pytest.raises(allswell.Timeout, match="-1 s"):
                await pool.request("GET", peer.url, timeouts=allswell.Timeouts(total=-1))
            await pool.aclose(-1)
    assert pool.state == "closed"


@pytest.mark.parametrize("spoken", [{"http2": False}, {"http1": False}, {"http3": "only"}], ids=["h1", "h2", "h3"])
async def test_a_request_without_time_is_not_sent(spoken: dict[str, Any]) -> None:
    """Not on a connection that is open either: the server must not execute what nobody waits for."""
    async with Origin() as origin:
        async with allswell.AsyncClient(verify=origin.client_context(), **spoken) as client:
            await client.get(origin.url)
            for total in (0, -1):
                with pytest.raises(httpx2.TimeoutException, match=f"not sent, because the total timeout of {total} s"):
                    await client.post(origin.url, content=b"x", extensions={"total_timeout": total})
            assert (await client.get(origin.url)).status_code == 200
        await origin.ended()
        assert [event.method for event in origin.record.of(RequestReceived)] == ["GET", "GET"]
        origin.assert_no_reset()


Use = Callable[[Any], Awaitable[object]]
#: Likewise, of requests.
ASKED: dict[str, tuple[Use, str]] = {
    "timeout": (
        lambda client: client.get("http://a", timeout=httpx.Timeout(1)),
        r"timeout must be httpx2.*, but httpx\.Timeout",
    ),
    "a pool's timeouts": (
        lambda client: client.get("http://a", timeout=allswell.Timeouts()),
        r"timeout must be httpx2\.Timeout.*, but allswell\.Timeouts",
    ),
    "stream": (
        lambda client: client.stream("GET", "http://a", timeout=httpx.Timeout(1)).__aenter__(),
        "timeout must be httpx2.*, but httpx",
    ),
    "URL": (lambda client: client.get(httpx.URL("http://a")), r"url must be httpx2\.URL.*, but httpx\.URL"),
    "auth": (
        lambda client: client.get("http://a", auth=httpx.BasicAuth("a", "b")),
        r"auth must be httpx2.*, but httpx\.BasicAuth",
    ),
    "request": (
        lambda client: client.send(httpx.Request("GET", "http://a")),
        r"request must be httpx2.*, but httpx\.Request",
    ),
}


@pytest.mark.parametrize("case", ASKED)
async def test_what_is_asked_with_the_wrong_thing(case: str) -> None:
    use, words = ASKED[case]
    async with allswell.AsyncClient() as client:
        with pytest.raises(TypeError, match=words):
            await use(client)
        assert client.pool is not None
        assert not client.pool.snapshot().routes


async def test_transports_of_the_wrong_library() -> None:
    async with httpx.AsyncClient(transport=allswell.AsyncTransport()) as client:  # type: ignore[arg-type]  # that is the test
        with pytest.raises(TypeError, match=r"request must be httpx2\.Request, but httpx\.Request"):
            await client.get("http://a")
    async with httpx2.AsyncClient(transport=allswell.httpx.AsyncTransport()) as other:  # type: ignore[arg-type]  # that too
        with pytest.raises(TypeError, match=r"request must be httpx\.Request, but httpx2\.Request"):
            await other.get("http://a")


async def test_timeouts_that_only_a_transport_sees() -> None:
    wrong: Any = allswell.Timeouts()
    async with httpx2.AsyncClient(transport=allswell.AsyncTransport()) as client:
        with pytest.raises(TypeError, match=r"timeout must be .*, but allswell\.Timeouts belongs to pools"):
            await client.get("http://a", timeout=wrong)


@pytest.mark.parametrize("wrong", [httpx2.Timeout(1), httpx.Timeout(1), 5.0])
async def test_a_pools_timeouts(wrong: Any) -> None:
    async with allswell.ConnectionPool() as pool:
        with pytest.raises(TypeError, match=r"timeouts must be allswell\.Timeouts, not "):
            await pool.request("GET", "http://a", timeouts=wrong)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "1", "X-B": "2"},
        {b"X-A": b"1", b"X-B": b"2"},
        [("X-A", "1"), ("X-B", "2")],
        [(b"X-A", b"1"), (b"X-B", b"2")],
        (("X-A", b"1"), [b"X-B", "2"]),
        httpx2.Headers([("X-A", "1"), ("X-B", "2")]),
        httpx.Headers([("X-A", "1"), ("X-B", "2")]),
        {"X-A": "1", "X-B": "2"}.items(),
    ],
    ids=lambda headers: type(headers).__name__,
)
async def test_headers_of_a_pools_request(headers: Any) -> None:
    with scripted_peer(answers(body=bytes)) as peer:
        async with allswell.ConnectionPool() as pool:
            seen = await (await pool.request("GET", peer.url, headers=headers)).read()
    assert b"\r\nx-a: 1\r\nx-b: 2\r\n" in seen.lower()


async def test_a_name_that_headers_have_twice_is_sent_twice() -> None:
    headers = httpx2.Headers([("A", "1"), ("A", "2")])
    with scripted_peer(answers(body=bytes)) as peer:
        async with allswell.ConnectionPool() as pool, pool.stream("GET", peer.url, headers=headers) as response:
            assert b"\r\nA: 1\r\nA: 2\r\n" in await response.read()


@pytest.mark.parametrize("wrong", [7, None, b"http://a", ["http://a"]])
async def test_what_is_no_url(wrong: Any) -> None:
    async with allswell.ConnectionPool() as pool:
        with pytest.raises(TypeError, match=r"^url must be str or httpx2\.URL, not "):
            await pool.request("GET", wrong)


@pytest.mark.parametrize("wrong", ["text", 7, [b"a"], {"a": 1}, io.BytesIO()])
async def test_content_that_is_none(wrong: Any) -> None:
    async with allswell.ConnectionPool() as pool:
        with pytest.raises(TypeError, match=r"^content must be bytes or an async iterable of bytes, not "):
            await pool.request("POST", "http://a", content=wrong)
        assert not pool.snapshot().routes


@pytest.mark.parametrize("wrong", ["a: b", 7, [("a",)], [("a", 1)], {"a": "ä"}, {"ä": "a"}])
async def test_headers_that_are_none(wrong: Any) -> None:
    async with allswell.ConnectionPool() as pool:
        with pytest.raises(allswell.LocalProtocolError, match=r"header"):
            await pool.request("GET", "http://a", headers=wrong)


@pytest.mark.parametrize(
    ("ours", "theirs", "package"),
    [("httpx", "httpx", "httpx"), ("otel", "opentelemetry", "opentelemetry-api")],
)
def test_the_missing_extra_is_named(ours: str, theirs: str, package: str) -> None:
    program = f"""
import sys
sys.modules["{theirs}"] = None
import allswell
try:
    import allswell.{ours}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"allswell.{ours} needs the package {package}: install allswell[{ours}]\n"


# Beside a pool


def test_each_setting_of_a_pool_is_a_keyword() -> None:
    fields = allswell.PoolConfig.__annotations__
    assert PoolSettings.__annotations__.keys() | TransportSettings.__annotations__.keys() == fields.keys()
    for settings in (PoolSettings, TransportSettings):
        assert {name: fields[name] for name in settings.__annotations__} == {
            name: kind.__forward_arg__ for name, kind in settings.__annotations__.items()
        }


BESIDE: dict[str, Any] = {
    "verify": False,
    "cert": "client.pem",
    "http1": False,
    "http2": False,
    "http3": True,
    "http3_origins": ["https://a"],
    "alt_svc": allswell.AltSvcMemory(),
    "https_records": True,
    "nameservers": ["127.0.0.1"],
    "quic": allswell.QuicConfig(idle_timeout=1),
    "resolver": allswell.Hosts({}),
    "allow_address": allswell.PublicAddresses(),
    "pins": {"a": "sha256//" + "A" * 43 + "="},
    "pipelining": 1,
    "max_connections_per_route": 1,
    "retries": 1,
    "uds": "socket",
    "local_address": "127.0.0.1",
    "socket_options": [(1, 2, 3)],
    "on_connection_end": print,
    "grace": 1.0,
    "limits": httpx2.Limits(max_connections=1),
}


@pytest.mark.parametrize("name", BESIDE)
async def test_a_setting_that_a_pool_makes_void_is_refused(name: str) -> None:
    async with allswell.ConnectionPool() as pool:
        for door in (allswell.AsyncClient, allswell.AsyncTransport):
            with pytest.raises(TypeError, match=f"^{name} beside pool= would have no effect"):
                door(pool=pool, **{name: BESIDE[name]})
        assert pool.snapshot().users == 1


DEFAULTS: dict[str, Any] = {
    "verify": True,
    "cert": None,
    "limits": httpx2.Limits(max_connections=100, max_keepalive_connections=20),
    "http1": True,
    "http2": True,
    "http3_origins": [],
    "nameservers": [],
    "socket_options": [],
    "retries": 0,
}


@pytest.mark.parametrize("name", DEFAULTS)
async def test_what_is_so_anyway_may_be_said_beside_a_pool(name: str) -> None:
    """Code that hands on all its settings says the defaults, too."""
    async with allswell.ConnectionPool() as pool, allswell.AsyncClient(pool=pool, **{name: DEFAULTS[name]}):
        assert pool.snapshot().users == 2


async def test_what_a_pool_leaves_to_its_users() -> None:
    """Proxies, and what the environment says of them and of passwords, are the client's."""
    async with allswell.ConnectionPool(grace=7) as pool:
        client = allswell.AsyncClient(
            pool=pool,
            proxy="http://a",
            trust_env=False,
            total_timeout=1,
            timeout=2,
            headers={"a": "b"},
            max_redirects=1,
        )
        async with client:
            pass
        assert client.close_report is not None
        assert client.close_report.grace == 7
        allswell.AsyncTransport(pool=pool, proxy="http://a", total_timeout=1)


async def test_settings_of_connections_that_a_client_takes() -> None:
    ends: list[allswell.ConnectionEnd] = []
    with scripted_peer(answers()) as peer:
        async with allswell.AsyncClient(
            max_connections_per_route=3, retries=2, local_address="127.0.0.1", on_connection_end=ends.append
        ) as client:
            assert (await client.get(peer.url)).status_code == 200
            assert client.pool is not None
            config = client.pool.config
            assert (config.max_connections_per_route, config.retries, config.local_address) == (3, 2, "127.0.0.1")
    assert [end.route for end in ends] == [peer.url]


async def test_the_settings_hold_through_proxies_too() -> None:
    """A client with a transport of its caller's makes pools of its own for its proxies."""
    given: ssl.SSLContext = certificates().client_context()
    client = allswell.AsyncClient(transport=httpx2.MockTransport(print), proxy="http://a", verify=given, retries=3)  # type: ignore[arg-type]  # it is never called
    [transport] = client._mounts.values()
    assert isinstance(transport, allswell.AsyncTransport)
    assert (transport.pool.config.retries, transport.pool.config.ssl_context) == (3, given)
    await client.aclose()
