"""Requests through proxies that are spoken to by HTTP/3: every version over their tunnels, races, refusals, chains."""

from __future__ import annotations

import ssl
from contextlib import ExitStack
from typing import Any

import anyio
import pytest
import trustme

from allswell import (
    CloseReport,
    ConnectFailed,
    ConnectionPool,
    ProxyHop,
    ProxyRefused,
    QuicConfig,
    Timeout,
    Timeouts,
)
from allswell._quic_store import QuicMemory
from allswell.testing import Origin, Response
from tests.support.certificates import certificates, issue
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import Http2Server, h2_tls
from tests.support.h3_proxy import Http3Proxy
from tests.support.holes import UdpHole
from tests.support.lag import stagger
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.learnt import time_stands_still
from tests.support.peer import scripted_peer
from tests.support.proxies import connect_proxy
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio


def hop_to(port: int, **settings: Any) -> ProxyHop:
    settings = {"http3": "only", "ssl_context": certificates().client_context(), **settings}
    return ProxyHop("https", "localhost", port, **settings)


def pool_through(*hops: ProxyHop, to: Origin | None = None, **settings: Any) -> ConnectionPool:
    trust = (to or certificates()).client_context()
    return ConnectionPool(ssl_context=trust, proxies=hops, **{"grace": 30.0, **settings})


def report_of(pool: ConnectionPool) -> CloseReport:
    assert pool.close_report is not None
    return pool.close_report


def stacks(pool: ConnectionPool) -> list[list[str]]:
    return [[layer.layer for layer in end.layers] for end in report_of(pool).connections]


def url_of(server: QuicServer, path: str = "/hello") -> str:
    return f"https://127.0.0.1:{server.port}{path}"


# Tunnels


@pytest.mark.parametrize("http3", [False, "only"], ids=["CONNECT", "CONNECT-UDP"])
async def test_a_proxy_that_rejects_tunnels_is_asked_a_few_times(http3: Any) -> None:
    def reject(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> bool:
        connection.quic.reset_stream(stream, 0x10B)
        return True

    with Http3Proxy(reject) as proxy:
        async with pool_through(hop_to(proxy.port), http3=http3) as pool:
            with pytest.raises(ConnectFailed, match="H3_REQUEST_REJECTED") as caught:
                await pool.request("GET", "https://origin.example/")
            assert caught.value.phase == "proxy"
        assert len(proxy.all("connect")) == 5


@pytest.mark.parametrize("inner", ["http/1.1", "h2"])
async def test_tcp_through_connect(inner: str) -> None:
    """RFC 9114 §4.4. What is for the proxy stays with the proxy."""
    told: list[dict[bytes, bytes]] = []

    def look(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> bool:
        told.append(fields)
        return False

    script, tls = (Http2Server(), h2_tls()) if inner == "h2" else (answers(), True)
    with Http3Proxy(look, answer_close=True) as proxy, scripted_peer(script, tls=tls) as origin:
        hop = hop_to(proxy.port, auth=(b"ada", b"l"), headers=((b"X-For", b"proxy"),))
        async with pool_through(hop) as pool:
            for number in range(3):
                answer = await pool.request("GET", f"{origin.url}/{number}")
                assert await answer.read() == f"/{number}".encode()
        assert report_of(pool).clean
        assert stacks(pool) == [["h2" if inner == "h2" else "h1", "tls", "tunnel"], ["h3", "quic", "udp"]]
        await origin.ended()
        assert len(origin.connections) == len(proxy.connections) == 1
        assert proxy.targets == [f"localhost:{origin.port}"]
        assert told[0][b"proxy-authorization"] == b"Basic YWRhOmw="
        assert told[0][b"x-for"] == b"proxy"


@pytest.mark.parametrize("datagrams", [True, False])
async def test_http3_inside_http3(datagrams: bool) -> None:
    """CONNECT-UDP (RFC 9298): by HTTP datagrams, and by capsules where the proxy takes none."""
    with Http3Proxy(datagrams=datagrams, answer_close=True) as proxy, QuicServer(answer_close=True) as origin:
        async with pool_through(hop_to(proxy.port), http3="only") as pool:
            answer = await pool.request("GET", url_of(origin))
            assert (answer.http_version, await answer.read()) == (b"HTTP/3", b"hello")
            assert len(await (await pool.request("GET", url_of(origin, "/bytes/2000000"))).read()) == 2_000_000
            sent = await pool.request("POST", url_of(origin, "/echo"), content=bytes(2_000_000))
            assert await sent.read() == b"2000000"
        assert report_of(pool).clean
        assert sorted(stacks(pool)) == [["h3", "quic", "connect-udp", "tunnel"], ["h3", "quic", "udp"]]
        assert proxy.targets == [f"/.well-known/masque/udp/127.0.0.1/{origin.port}/"]
        assert {how for how, _ in proxy.up} == {"datagram" if datagrams else "capsule"}
        # Capsules bear any size: what the path from the proxy to the origin carries is found out.
        assert max(size for _, size in proxy.up) == (1200 if datagrams else 1452)


async def test_datagrams_too_small_for_quic_are_not_used() -> None:
    """A proxy whose DATAGRAM frames are smaller than QUIC's 1200 bytes: capsules."""
    with Http3Proxy(max_datagram_frame_size=1000) as proxy, QuicServer() as origin:
        async with pool_through(hop_to(proxy.port), http3="only", grace=1) as pool:
            assert await (await pool.request("GET", url_of(origin))).read() == b"hello"
        assert {how for how, _ in proxy.up} == {"capsule"}


async def test_what_does_not_fit_is_lost_and_all_else_arrives() -> None:
    """The proxy's own packets are too small for the origin's: QUIC's handshake inside cannot succeed, and says so."""
    with Http3Proxy(max_datagram_size=1200) as proxy, QuicServer() as origin:
        async with pool_through(hop_to(proxy.port), http3="only", grace=1) as pool:
            with pytest.raises(Timeout) as caught:
                await pool.request("GET", url_of(origin), timeouts=Timeouts(connect=1))
            assert caught.value.phase == "connect"
        async with pool_through(hop_to(proxy.port)) as pool:
            with scripted_peer(answers(), tls=True) as there:
                assert await (await pool.request("GET", f"{there.url}/x")).read() == b"/x"


async def test_plain_http_is_forwarded() -> None:
    with Http3Proxy(answer_close=True) as proxy:
        hop = hop_to(proxy.port, auth=(b"ada", b"l"))
        async with pool_through(hop) as pool:
            for host in ("one", "two"):
                assert await (await pool.request("GET", f"http://{host}.example/hello")).read() == b"hello"
        assert report_of(pool).clean
        assert proxy.all("request") == [("GET", "/hello")] * 2
        assert len(proxy.connections) == 1


async def test_many_tunnels_over_one_connection() -> None:
    with Http3Proxy() as proxy, ExitStack() as entered:
        origins = [entered.enter_context(scripted_peer(answers(together=8), tls=True)) for _ in range(5)]
        async with pool_through(hop_to(proxy.port)) as pool:
            good = 0

            async def get(url: str) -> None:
                nonlocal good
                answer = await pool.request("GET", url, timeouts=Timeouts())
                good += await answer.read() == b"/x"

            async with anyio.create_task_group() as tasks:
                for origin in origins:
                    for _ in range(8):
                        tasks.start_soon(get, f"{origin.url}/x")
        assert good == 40
        assert len(proxy.connections) == 1
        assert len(proxy.targets) == len(proxy.all("end")) == 40
        assert proxy.all("reset") == []


async def test_http3_through_two_of_them() -> None:
    """Datagrams inside datagrams inside datagrams: the innermost may still be 1200 bytes long."""
    with Http3Proxy() as near, Http3Proxy(max_datagram_size=1280) as far, QuicServer() as origin:
        async with pool_through(hop_to(near.port), hop_to(far.port), http3="only") as pool:
            assert len(await (await pool.request("GET", url_of(origin, "/bytes/300000"))).read()) == 300_000
        assert sorted(stacks(pool), key=len) == [
            ["h3", "quic", "udp"],
            ["h3", "quic", "connect-udp", "tunnel"],
            ["h3", "quic", "connect-udp", "tunnel"],
        ]
        for proxy in (near, far):
            assert {how for how, _ in proxy.up} == {"datagram"}
        assert max(size for _, size in far.up) == 1200 < max(size for _, size in near.up)


@pytest.mark.parametrize("other", ["http", "h2"])
@pytest.mark.parametrize("first", [True, False])
async def test_chains_with_others(first: bool, other: str) -> None:
    """Behind an HTTP/2 proxy it is reached by CONNECT-UDP; behind one of HTTP/1.1 not by QUIC at all."""
    script, tls = (Http2Proxy(settings={8: 1}), h2_tls()) if other == "h2" else (connect_proxy(), False)
    with (
        Origin({"/far": Response(body=b"far")}, versions=["h1"]) as origin,
        Http3Proxy() as proxy,
        scripted_peer(script, tls=tls) as peer,
    ):
        trust = certificates().client_context()
        another = (
            ProxyHop("https", "localhost", peer.port, ssl_context=trust)
            if tls
            else ProxyHop("http", "127.0.0.1", peer.port)
        )
        mine = hop_to(proxy.port)
        async with pool_through(*((mine, another) if first else (another, mine)), to=origin, grace=3) as pool:
            if other == "http" and not first:
                with pytest.raises(ConnectFailed, match="HTTP/3 only"):
                    await pool.request("GET", origin.url)
            else:
                assert await (await pool.request("GET", f"{origin.url}/far")).read() == b"far"


# Where there is no QUIC


async def test_a_proxy_without_udp_is_reached_by_tcp_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    stagger(monkeypatch)
    time_stands_still(monkeypatch)
    script = Http2Proxy()
    with (
        Origin(versions=["h1"]) as one,
        Origin(versions=["h1"]) as two,
        scripted_peer(script, tls=h2_tls()) as proxy,
        UdpHole(proxy.port) as hole,
    ):
        async with pool_through(hop_to(proxy.port, http3=True), to=one, keepalive_expiry=0.1) as pool:
            assert (await pool.request("GET", one.url)).status == 200
            assert hole.swallowed()
            await proxy.ended()  # idle
            assert (await pool.request("GET", two.url)).status == 200
            assert hole.swallowed() == []
        assert len(proxy.connections) == 2
        assert len(script.tunnels) == 2


async def test_quic_wins_where_it_is() -> None:
    with Origin(versions=["h1"]) as origin, Http3Proxy() as proxy:
        async with pool_through(hop_to(proxy.port, http3=True), to=origin) as pool:
            assert (await pool.request("GET", origin.url)).status == 200
        assert len(proxy.targets) == 1


async def test_it_is_off_unless_asked_for() -> None:
    with scripted_peer(Http2Proxy(), tls=h2_tls()) as proxy, UdpHole(proxy.port) as hole:
        with scripted_peer(answers(), tls=True) as origin:
            async with pool_through(hop_to(proxy.port, http3=False), http3=True) as pool:
                assert (await pool.request("GET", origin.url)).status == 200
        assert hole.swallowed() == []


# Failures


@pytest.mark.parametrize("udp", [False, True])
async def test_refusals(udp: bool) -> None:
    def refuse(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> bool:
        connection.respond(stream, 407, b"who are you?", (b"proxy-authenticate", b"Basic"))
        return True

    with Http3Proxy(refuse) as proxy:
        hop = hop_to(proxy.port, auth=(b"ada", b"lovelace"))
        async with pool_through(hop, http3="only" if udp else False, grace=1) as pool:
            with pytest.raises(ProxyRefused) as caught:
                await pool.request("GET", "https://origin.example/")
        assert caught.value.status == 407
        assert caught.value.body == b"who are you?"
        assert str(hop) in str(caught.value)
        assert "lovelace" not in str(caught.value)


async def test_a_stream_that_is_reset() -> None:
    def reset(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> bool:
        connection.quic.reset_stream(stream, 0x10F)  # H3_CONNECT_ERROR
        return True

    with Http3Proxy(reset) as proxy:
        async with pool_through(hop_to(proxy.port), grace=1) as pool:
            with pytest.raises(ConnectFailed, match="no tunnel through the proxy https://localhost") as caught:
                await pool.request("GET", "https://origin.example/")
            assert caught.value.phase == "proxy"


async def test_a_proxy_that_stalls_is_named() -> None:
    with Http3Proxy(lambda *_: True) as proxy:
        async with pool_through(hop_to(proxy.port), grace=1) as pool:
            with pytest.raises(Timeout, match=f"through .*:{proxy.port}.* no connection within 0.3 s"):
                await pool.request("GET", "https://origin.example/", timeouts=Timeouts(connect=0.3))


async def test_a_proxy_that_is_not_there(closed_udp_port: int) -> None:
    async with pool_through(hop_to(closed_udp_port)) as pool:
        with pytest.raises(ConnectFailed, match=f"the proxy https://localhost:{closed_udp_port}"):
            await pool.request("GET", "https://origin.example/")


async def test_an_untrusted_proxy() -> None:
    """The pool's context is for origins: it vouches for no proxy, on QUIC as on TCP."""
    with Http3Proxy() as proxy:
        async with pool_through(hop_to(proxy.port, ssl_context=None)) as pool:
            with pytest.raises(ConnectFailed, match="the proxy https://localhost") as caught:
                await pool.request("GET", "https://origin.example/")
            assert caught.value.phase == "tls"


async def test_a_proxy_without_connect_udp() -> None:
    """``http3=True`` goes through CONNECT then."""

    def refuse(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> bool:
        if b":protocol" in fields:
            connection.respond(stream, 501)
        return b":protocol" in fields

    with Origin(versions=["h1"]) as origin, Http3Proxy(refuse) as proxy:
        settings = {"http3": True, "http3_origins": frozenset({origin.url})}
        async with pool_through(hop_to(proxy.port), to=origin, **settings) as pool:
            assert (await pool.request("GET", origin.url)).http_version == b"HTTP/1.1"
        assert len(proxy.targets) == 2


def test_only_https_proxies_speak_it() -> None:
    with pytest.raises(ValueError, match="http3 is only for https proxies, and http://a:1 is not one"):
        ProxyHop("http", "a", 1, http3=True)


async def test_the_origins_client_certificate_is_not_for_proxies_that_ask() -> None:
    quic = QuicConfig(certfile=str(certificates().client))
    with Http3Proxy(ask_client=True) as proxy, QuicServer(ask_client=True) as origin:
        async with pool_through(hop_to(proxy.port), http3="only", quic=quic) as pool:
            assert (await pool.request("GET", f"https://localhost:{origin.port}/hello")).status == 200
    assert proxy.all("certificate") == [(None,)]
    [(shown,)] = origin.all("certificate")
    assert shown is not None


async def test_two_hops_of_one_url_do_not_share_their_trust() -> None:
    """A session with a proxy that nobody verified opens nothing to those who do."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    quic = QuicConfig(store=QuicMemory(), early_data=True)
    with Http3Proxy(files=issue(trustme.CA(), "localhost")) as proxy, QuicServer() as origin:
        url = f"https://localhost:{origin.port}/hello"
        async with pool_through(hop_to(proxy.port, ssl_context=anybody), http3="only", quic=quic) as pool:
            assert (await pool.request("GET", url)).status == 200
        async with pool_through(hop_to(proxy.port), http3="only", quic=quic) as pool:
            with pytest.raises(ConnectFailed, match=r"the proxy .*bad_certificate"):
                await pool.request("GET", url)
    assert len(proxy.targets) == 1


async def test_keys_of_the_proxys_tls_are_logged(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a context of its own too: both TLS and QUIC."""
    with (
        Http3Proxy() as quic,
        scripted_peer(connect_proxy(), tls=True) as tcp,
        scripted_peer(answers(), tls=True) as origin,
    ):
        for name, port, http3 in (("quic", quic.port, "only"), ("tcp", tcp.port, False)):
            trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            trust.load_verify_locations(certificates().ca)
            keys = tmp_path / name
            monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
            silent = certificates().client_context()
            silent.keylog_filename = str(tmp_path / "origins")
            async with ConnectionPool(
                ssl_context=silent, proxies=(hop_to(port, http3=http3, ssl_context=trust),)
            ) as pool:
                assert (await pool.request("GET", origin.url)).status == 200
            assert keys.read_text().count("CLIENT_TRAFFIC_SECRET_0") == 1
