"""Pins: which keys the servers of a host may have, in all versions of HTTP, by proxies, and where a session goes on."""

from __future__ import annotations

import dataclasses
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpcore2
import httpx2
import pytest
import trustme

import allswell
from allswell import AsyncClient, ConnectFailed, ConnectionPool, Hosts, PinMismatch, ProxyHop, QuicConfig, QuicMemory
from allswell._quic_store import QuicTicket
from allswell.testing import Origin
from tests.support.certificates import Certificates, certificates, issue
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import Http2Server
from tests.support.h3_proxy import Http3Proxy
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.proxies import connect_proxy
from tests.support.quic_server import QuicServer
from tests.support.scripts import answers

pytestmark = pytest.mark.anyio

OTHER = "sha256//" + "A" * 43 + "="


def pin(files: Certificates) -> str:
    """The pin of a server's certificate, as curl's manual says to make it."""
    command = "openssl x509 -pubkey -noout | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64"
    run = subprocess.run(command, shell=True, check=True, capture_output=True, input=files.chain.read_bytes())
    return "sha256//" + run.stdout.decode().strip()


@contextmanager
def server(version: str, files: Certificates | None = None) -> Iterator[tuple[int, Any]]:
    """A server of one version of HTTP, its port, and how many requests it has seen."""
    files = files or certificates()
    if version == "h3":
        with QuicServer(files=files) as quic:
            yield quic.port, lambda: len(quic.all("request"))
        return
    script = Http2Server() if version == "h2" else answers()
    alpn = ["h2"] if version == "h2" else ["http/1.1"]
    with scripted_peer(script, tls=files.server_context(alpn=alpn)) as peer:
        if isinstance(script, Http2Server):
            yield peer.port, lambda: len([*script.requests])
        else:
            yield peer.port, lambda: sum(len(each.requests) for each in peer.connections)


def settings(version: str, **more: Any) -> dict[str, Any]:
    return {"ssl_context": certificates().client_context(), "http3": "only" if version == "h3" else False, **more}


versions = pytest.mark.parametrize("version", ["h1", "h2", "h3"])


@versions
async def test_the_key_that_is_pinned(version: str) -> None:
    with server(version) as (port, requests):
        for pins in (pin(certificates()), [OTHER, pin(certificates())]):
            async with ConnectionPool(**settings(version, pins={"LOCALHOST.": pins})) as pool:
                assert (await pool.request("GET", f"https://localhost:{port}/hello")).status == 200
        assert requests() == 2


@versions
async def test_another_key(version: str) -> None:
    """The certificate is trusted, and yet nothing is sent to its server, nor asked again; other hosts are served."""
    with server(version) as (port, requests):
        async with ConnectionPool(**settings(version, pins={"localhost": OTHER}), retries=0) as pool:
            with pytest.raises(PinMismatch) as caught:
                await pool.request("GET", f"https://localhost:{port}/hello")
            error = caught.value
            assert (error.phase, error.host, error.seen, error.by) == ("tls", "localhost", pin(certificates()), "peer")
            assert "localhost" in str(error)
            assert error.seen in str(error)
            assert isinstance(error, ConnectFailed)
            assert requests() == 0
            assert (await pool.request("GET", f"https://127.0.0.1:{port}/hello")).status == 200


async def test_a_client_says_it_in_httpx2s_words() -> None:
    with server("h2") as (port, _):
        async with AsyncClient(verify=certificates().client_context(), pins={"localhost": OTHER}) as client:
            with pytest.raises(httpx2.ConnectError, match="none of its pins") as caught:
                await client.get(f"https://localhost:{port}/")
            assert isinstance(caught.value.__cause__, PinMismatch)


async def test_over_both_it_is_told_of_both() -> None:
    with ExitStack() as stack:
        tcp = stack.enter_context(scripted_peer(answers(), tls=certificates().server_context()))
        try:
            quic = stack.enter_context(QuicServer(port=tcp.port))
        except OSError:
            pytest.skip("somebody has that port for UDP")
        origin = f"https://localhost:{tcp.port}"
        async with ConnectionPool(
            **settings("h3") | {"http3": True, "http3_origins": frozenset({origin}), "pins": {"localhost": OTHER}}
        ) as pool:
            with pytest.raises(PinMismatch, match=r"none of its pins .*before that.*none of its pins"):
                await pool.request("GET", origin)
        assert quic.all("request") == []


@versions
async def test_without_other_trust_a_pin_is_enough(version: str) -> None:
    """A server that signed its certificate itself: known by its key."""
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    files = issue(trustme.CA(), "other.example")
    with server(version, files) as (port, requests):
        for pins, served in ((pin(files), True), (OTHER, False)):
            async with ConnectionPool(
                **settings(version) | {"ssl_context": nobody, "pins": {"localhost": pins}}
            ) as pool:
                if served:
                    assert (await pool.request("GET", f"https://localhost:{port}/hello")).status == 200
                else:
                    with pytest.raises(PinMismatch):
                        await pool.request("GET", f"https://localhost:{port}/hello")
        assert requests() == 1


@versions
async def test_the_name_that_is_asked_for_in_place_of_the_hosts(version: str) -> None:
    """``sni_hostname``: who proves to be that name has its pins, too."""
    with server(version) as (port, requests):
        for pins, served in (
            ({"name.example": pin(certificates())}, True),
            ({"name.example": OTHER}, False),
            ({"name.example": pin(certificates()), "localhost": OTHER}, False),
        ):
            pool = ConnectionPool(**settings(version, pins=pins))
            async with AsyncClient(pool=pool) as client:
                get = client.get(f"https://localhost:{port}/hello", extensions={"sni_hostname": "name.example"})
                if served:
                    assert (await get).status_code == 200
                else:
                    with pytest.raises(httpx2.ConnectError, match="none of its pins"):
                        await get
        assert requests() == 1


async def test_a_name_in_place_of_the_hosts_that_is_none_leaves_nothing_open() -> None:
    with scripted_peer(lambda connection: None, tls=certificates().server_context()) as peer:
        pool = ConnectionPool(**settings("h1", pins={"name.example": OTHER}), retries=0)
        async with AsyncClient(pool=pool) as client:
            with pytest.raises(httpx2.ConnectError, match="is not a host name") as caught:
                await client.get(f"https://localhost:{peer.port}/", extensions={"sni_hostname": "bü cher"})
            cause = caught.value.__cause__
            assert isinstance(cause, ConnectFailed)
            assert (cause.phase, cause.by) == ("tls", "us")
            await peer.ended()


@pytest.mark.parametrize("early", [False, True])
async def test_a_session_goes_on_only_with_the_key_that_is_pinned(early: bool) -> None:
    """Nothing is shown then; so it is looked at what was shown when it began. Nothing goes out as early data either."""
    store = QuicMemory()
    quic = QuicConfig(store=store, early_data=early)
    with QuicServer() as peer:
        url = f"https://localhost:{peer.port}/hello"
        for _ in range(2):
            async with ConnectionPool(**settings("h3", quic=quic, pins={"localhost": pin(certificates())})) as pool:
                await pool.request("GET", url)
        assert peer.all("handshake") == [(False, False), (True, early)]
        async with ConnectionPool(**settings("h3", quic=quic, pins={"localhost": OTHER})) as pool:
            with pytest.raises(PinMismatch):
                await pool.request("GET", url)
        assert len(peer.all("request")) == 2


async def test_a_ticket_that_tells_not_whose_it_is_opens_nothing_that_is_pinned() -> None:
    class Forgetful(QuicMemory):
        def put_ticket(self, server: str, ticket: QuicTicket) -> None:
            super().put_ticket(server, dataclasses.replace(ticket, chain=()))

    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    more: dict[str, Any] = {"ssl_context": nobody, "quic": QuicConfig(store=Forgetful())}
    with QuicServer() as peer:
        for pins in ({}, {"localhost": pin(certificates())}):
            async with ConnectionPool(**settings("h3") | more | {"pins": pins}) as pool:
                await pool.request("GET", f"https://localhost:{peer.port}/hello")
        assert peer.all("handshake") == [(False, False)] * 2


# Through proxies


@pytest.mark.parametrize("kind", ["http/1.1", "h2", "h3"])
@pytest.mark.parametrize("whose", ["the proxy's", "the origin's"])
async def test_proxies_have_pins_of_their_own(kind: str, whose: str) -> None:
    """By its own host; and the origin's are looked at through the tunnel."""
    theirs = issue(trustme.CA(), "proxy.example")
    context = ssl.create_default_context(cafile=str(theirs.ca))
    with ExitStack() as stack:
        origin = stack.enter_context(scripted_peer(answers(), tls=certificates().server_context()))
        if kind == "h3":
            port = stack.enter_context(Http3Proxy(files=theirs)).port
        else:
            script = connect_proxy() if kind == "http/1.1" else Http2Proxy()
            port = stack.enter_context(scripted_peer(script, tls=theirs.server_context(alpn=[kind]))).port
        hop = ProxyHop("https", "proxy.example", port, ssl_context=context, http3="only" if kind == "h3" else False)
        right = {"proxy.example": pin(theirs), "localhost": pin(certificates())}
        more: dict[str, Any] = {"resolver": Hosts({"proxy.example": "127.0.0.1"}), "proxies": (hop,)}
        async with ConnectionPool(**settings("h1", pins=right, **more)) as pool:
            assert (await pool.request("GET", f"https://localhost:{origin.port}/")).status == 200
        wrong = "proxy.example" if whose == "the proxy's" else "localhost"
        async with ConnectionPool(**settings("h1", pins={**right, wrong: OTHER}, **more)) as pool:
            with pytest.raises(PinMismatch) as caught:
                await pool.request("GET", f"https://localhost:{origin.port}/")
            assert (caught.value.host, caught.value.seen) == (wrong, right[wrong])
        await origin.ended(connections=1 if whose == "the proxy's" else 2)
        assert sum(len(each.requests) for each in origin.connections) == 1


async def test_tls_that_a_caller_begins_in_a_tunnel() -> None:
    with Origin(versions=["h1"]) as origin, scripted_peer(connect_proxy()) as by:
        async with AsyncClient(pins={"localhost": OTHER}) as client:
            target = f"localhost:{origin.port}".encode()
            request = client.build_request("CONNECT", by.url, extensions={"target": target})
            response = await client.send(request, stream=True)
            stream = response.extensions["network_stream"]
            with pytest.raises(Exception, match="none of its pins"):
                await stream.start_tls(origin.client_context(), "localhost")
            with pytest.raises(httpcore2.ConnectError, match="is not a host name"):
                await stream.start_tls(origin.client_context(), "bü cher")
            await response.aclose()


# One connection for several origins


@pytest.mark.parametrize("version", ["h2", "h3"])
async def test_a_connection_serves_a_pinned_host_only_with_its_key(version: str) -> None:
    """Its certificate is for both names, and the other one's pins are not for its key: no request goes there."""
    hosts = Hosts({"name.example": "127.0.0.1", "localhost": "127.0.0.1"})
    with server(version) as (port, requests):
        for pins, served in ((pin(certificates()), True), (OTHER, False)):
            before = requests()
            more = settings(version, pins={"name.example": pins}, resolver=hosts)
            async with ConnectionPool(**more) as pool:
                await pool.request("GET", f"https://localhost:{port}/hello")
                if served:
                    await pool.request("GET", f"https://name.example:{port}/hello")
                    assert pool.snapshot().connections == 1
                else:
                    with pytest.raises(PinMismatch):
                        await pool.request("GET", f"https://name.example:{port}/hello")
            assert requests() - before == 1 + served


# What is no pin


@pytest.mark.parametrize(
    ("pins", "kind", "words"),
    [
        ({"a": "sha256/AAAA"}, ValueError, "'sha256/AAAA', for a, is not a pin"),
        ({"a": "sha256//AAAA"}, ValueError, "is not a pin"),
        ({"a": "sha256//" + "ä" * 44}, ValueError, "is not a pin"),
        ({"a": [OTHER, "x"]}, ValueError, "'x', for a, is not a pin"),
        ({"a": [7]}, ValueError, "7, for a, is not a pin"),
        ({"a": []}, ValueError, "a has no pin"),
        ({"a.example": OTHER, "A.EXAMPLE.": OTHER}, ValueError, "'a.example' and 'A.EXAMPLE.' are the same host"),
        ({"::1": OTHER, "[0::1]": OTHER}, ValueError, r"'::1' and '\[0::1\]' are the same host"),
        ({"https://a": OTHER}, ValueError, "'https://a' is not a host name"),
        ({"*.a": OTHER}, ValueError, r"'\*\.a' is not a host name"),
        ({"": OTHER}, ValueError, "'' is not a host name"),
        ({"a:443": OTHER}, ValueError, "'a:443' is not a host name"),
        ({"[::1]:443": OTHER}, ValueError, "is not a host name"),
        ({"127.0.0.1:443": OTHER}, ValueError, "is not a host name"),
        ({"u@a": OTHER}, ValueError, "is not a host name"),
        ({" a": OTHER}, ValueError, "is not a host name"),
        ({".a": OTHER}, ValueError, "is not a host name"),
        ({"ä:443": OTHER}, ValueError, "is not a host name"),
        ({7: OTHER}, ValueError, "7 is not a host name"),
        ([OTHER], TypeError, "must be a mapping of hosts to pins, not list"),
    ],
)
async def test_what_is_no_pin(pins: Any, kind: type[Exception], words: str) -> None:
    for door in (ConnectionPool, allswell.AsyncTransport, AsyncClient):
        with pytest.raises(kind, match=words):
            door(pins=pins)


async def test_hosts_are_compared_as_urls_have_them() -> None:
    config = allswell.PoolConfig(pins={"Bücher.example": OTHER, "[::1]": OTHER, "2001:DB8:0:0::7": OTHER})
    assert set(config.pins) == {"xn--bcher-kva.example", "::1", "2001:db8::7"}
    with scripted_peer(answers(), tls=certificates().server_context(), host="::1") as peer:
        async with ConnectionPool(**settings("h1", pins={"::1": OTHER})) as pool:
            for host in ("::1", "0:0:0:0:0:0:0:1", "::0:1", "::1%25lo"):
                with pytest.raises(PinMismatch):
                    await pool.request("GET", f"https://[{host}]:{peer.port}/")


async def test_who_we_are_is_not_told_to_another_key() -> None:
    """TLS 1.3: our certificate would go behind the server's, in our last message of the handshake."""
    context = certificates().server_context(ask_client=True, version=ssl.TLSVersion.TLSv1_3)
    ours = allswell.ClientCertificate.from_files(certificates().client)
    agreed: list[PeerConnection] = []
    with scripted_peer(agreed.append, tls=context) as tcp, QuicServer(ask_client=True) as quic:
        for port, version in ((tcp.port, "h1"), (quic.port, "h3")):
            async with ConnectionPool(**settings(version, pins={"localhost": OTHER}, cert=ours)) as pool:
                with pytest.raises(PinMismatch):
                    await pool.request("GET", f"https://localhost:{port}/hello")
        await tcp.ended()
        assert agreed == []  # a script runs when the handshake is complete
        assert quic.all("certificate") == []
