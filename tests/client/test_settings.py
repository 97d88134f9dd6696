"""What a client and a transport can be told about connections, seen by the server."""

from __future__ import annotations

import inspect
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import httpx2
import pytest

import allswell
import allswell.httpx
from allswell._client import ClientSettings
from allswell.testing import Origin
from tests.support.certificates import certificates
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.proxies import connect_proxy
from tests.support.quic_server import QuicServer
from tests.support.scripts import answers, response

pytestmark = pytest.mark.anyio


async def test_no_parameter_of_httpx2s_client_is_missing() -> None:
    theirs = inspect.signature(httpx2.AsyncClient).parameters.keys()
    ours = inspect.signature(allswell.AsyncClient).parameters.keys()
    assert theirs - ours == ClientSettings.__annotations__.keys()


_DEFAULTS = """
import inspect, allswell, httpx2
from allswell._config import PoolConfig, Timeouts

config = PoolConfig()
print(Timeouts() == Timeouts(5, 5, 5, 5, None), config.expect_continue_timeout == 1)
for grace in (config.grace, *(inspect.signature(each).parameters["grace"].default for each in (
    allswell.AsyncClient, allswell.AsyncTransport
))):
    print(grace == 2)
for expiry in (config.keepalive_expiry, allswell.AsyncTransport().pool.config.keepalive_expiry):
    print(expiry == 5)
"""


def test_the_times_that_hold_unless_told_otherwise() -> None:
    """Asked for in a process of its own: here they are longer (see ``tests/support/lag.py``)."""
    told = subprocess.run([sys.executable, "-c", _DEFAULTS], check=True, capture_output=True, text=True).stdout
    assert set(told.split()) == {"True"}, told


async def test_unix_domain_sockets(tmp_path: Path) -> None:
    with scripted_peer(answers(), unix_path=tmp_path / "socket") as peer:
        transport = allswell.AsyncTransport(uds=str(tmp_path / "socket"))
        async with httpx2.AsyncClient(transport=transport) as client:
            assert (await client.get("http://anything.example/x")).text == "/x"
        await peer.ended()
        assert peer.connections[0].saw == ["FIN"]


async def test_local_address_and_socket_options() -> None:
    with scripted_peer(answers()) as peer:
        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        transport = allswell.AsyncTransport(local_address="127.0.0.7", socket_options=options)
        async with httpx2.AsyncClient(transport=transport) as client:
            stream = (await client.get(peer.url)).extensions["network_stream"]
            assert stream.get_extra_info("client_addr")[0] == "127.0.0.7"
            assert stream.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert peer.connections[0].raw.getpeername()[0] == "127.0.0.7"


async def test_retries_of_the_connection(closed_port: int) -> None:
    """Nobody listens, and the client tries again."""
    tries: list[str] = []

    async def trace(name: str, info: dict[str, object]) -> None:
        if name == "connection.connect_tcp.started":
            tries.append(name)

    async with httpx2.AsyncClient(transport=allswell.AsyncTransport(retries=1)) as client:
        with pytest.raises(httpx2.ConnectError, match=str(closed_port)):
            await client.get(f"http://127.0.0.1:{closed_port}", extensions={"trace": trace})
    assert len(tries) == 2


async def test_keylog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever context the client was given. (The contexts are made before: Python's own would write there too.)"""
    log = tmp_path / "keys"
    given = certificates().client_context()
    with scripted_peer(answers(), tls=True) as peer:
        monkeypatch.setenv("SSLKEYLOGFILE", str(log))
        contexts: tuple[ssl.SSLContext | bool, ...] = (given, False)
        for count, verify in enumerate(contexts, 1):
            async with allswell.AsyncClient(verify=verify) as client:
                await client.get(peer.url)
            assert log.read_text().count("CLIENT_TRAFFIC_SECRET_0") == count


async def test_key_log_is_for_us_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds secrets: on TCP, QUIC, and where Python makes the context."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates().ca))
    with scripted_peer(answers(), tls=True) as peer, QuicServer() as quic:
        urls = {"default": peer.url, "given": peer.url, "quic": f"https://127.0.0.1:{quic.port}/hello"}
        for name, url in urls.items():
            log = tmp_path / name
            monkeypatch.delenv("SSLKEYLOGFILE", raising=False)
            verify = True if name == "default" else certificates().client_context()
            monkeypatch.setenv("SSLKEYLOGFILE", str(log))
            async with allswell.AsyncClient(verify=verify, http3="only" if name == "quic" else False) as client:
                await client.get(url)
            assert "CLIENT_TRAFFIC_SECRET_0" in log.read_text()
            assert log.stat().st_mode & 0o777 == 0o600, name


WAYS: dict[str, Callable[[ssl.SSLContext], object]] = {
    "client": lambda _: allswell.AsyncClient(),
    "client with a context": lambda context: allswell.AsyncClient(verify=context),
    "client of QUIC": lambda _: allswell.AsyncClient(verify=False, http3="only"),
    "transport": lambda _: allswell.AsyncTransport(),
    "transport of httpx": lambda _: allswell.httpx.AsyncTransport(),
    "pool": lambda context: allswell.ConnectionPool(ssl_context=context),
    "pool of QUIC": lambda _: allswell.ConnectionPool(http3="only"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "kind"), [("", IsADirectoryError), ("nowhere/keys", FileNotFoundError)])
def test_a_key_log_that_cannot_be_written(
    way: str, name: str, kind: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told at once, of TCP and of QUIC, and what is to be put right."""
    context = certificates().client_context()
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / name))
    with pytest.raises(kind, match="SSLKEYLOGFILE") as caught:
        WAYS[way](context)
    assert caught.value.filename == str(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    allswell.ConnectionPool(trust_env=False)


@pytest.mark.parametrize("http3", [False, "only"])
@pytest.mark.parametrize("given", [True, False], ids=["given", "default"])
async def test_a_key_log_that_cannot_be_written_any_more(
    http3: Literal[False, "only"], given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = certificates().client_context() if given else None
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with allswell.ConnectionPool(ssl_context=context, http3=http3) as pool:
            monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path))
            with pytest.raises(allswell.ConnectFailed, match=f"SSLKEYLOGFILE.*{tmp_path}") as caught:
                await pool.request("GET", f"https://127.0.0.1:{server.getsockname()[1]}/")
        assert (caught.value.phase, caught.value.by) == ("tls", "us")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("http3", [False, "only"])
async def test_a_key_log_that_is_full_stops_nobody(
    http3: Literal[False, "only"], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenSSL says nothing of it; what is ours says it in the log."""
    context = certificates().client_context()
    with scripted_peer(answers(), tls=True) as peer, QuicServer() as quic:
        monkeypatch.setenv("SSLKEYLOGFILE", "/dev/full")
        async with allswell.ConnectionPool(ssl_context=context, http3=http3) as pool:
            url = f"https://127.0.0.1:{quic.port}/hello" if http3 else peer.url
            assert (await pool.request("GET", url)).status == 200
    assert ("the key log /dev/full was not written" in caplog.text) == bool(http3)


@pytest.mark.parametrize("version", ["h1", "h3", "proxy"])
async def test_no_key_log_without_the_environment(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``trust_env=False``: neither for a context of ours nor for the caller's own."""
    log, qlogs = tmp_path / "keys", tmp_path / "qlogs"
    qlogs.mkdir()
    given, for_proxy = certificates().client_context(), certificates().client_context()
    with (
        scripted_peer(answers(), tls=True) as peer,
        scripted_peer(connect_proxy(), tls=True) as hop,
        QuicServer() as quic,
    ):
        monkeypatch.setenv("SSLKEYLOGFILE", str(log))  # not before: Python's own contexts would log, the servers' too
        monkeypatch.setenv("QLOGDIR", str(qlogs))
        for verify in (given, False):
            proxy = httpx2.Proxy(hop.url, ssl_context=for_proxy) if version == "proxy" else None
            url = f"https://127.0.0.1:{quic.port}/hello" if version == "h3" else peer.url
            async with allswell.AsyncClient(
                verify=verify, trust_env=False, proxy=proxy, http3="only" if version == "h3" else False
            ) as client:
                assert (await client.get(url)).status_code == 200
    assert not log.exists()
    assert not list(qlogs.iterdir())


async def test_the_default_trust_store_trusts_no_throw_away_ca() -> None:
    with scripted_peer(answers(), tls=True) as peer:
        async with allswell.AsyncClient() as client:
            with pytest.raises(httpx2.ConnectError, match="certificate of localhost"):
                await client.get(peer.url)
        await peer.ended()
        assert peer.connections[0].handshake_error is not None


async def test_verify_false_and_a_context() -> None:
    async with Origin(versions=["h1"]) as origin:
        for verify in (False, origin.client_context()):
            async with allswell.AsyncClient(verify=verify) as client:
                assert (await client.get(origin.url)).status_code == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_client_certificates(version: ssl.TLSVersion) -> None:
    names: list[bytes] = []

    def script(connection: PeerConnection) -> None:
        while connection.read_request():
            assert connection._tls is not None
            names.append(connection._tls.getpeercert(binary_form=True) or b"")
            connection.send(response(b"known"))

    context = certificates().server_context(version=version, ask_client=True)
    with scripted_peer(script, tls=context) as peer:
        mine = certificates().client_context(with_certificate=True)
        async with allswell.AsyncClient(verify=mine) as client:
            assert (await client.get(peer.url)).text == "known"
        assert len(names) == 1
        assert names[0]
        async with allswell.AsyncClient(verify=certificates().client_context()) as client:
            with pytest.raises(httpx2.TransportError):
                await client.get(peer.url)


async def test_proxies_still_go_through_httpx2s_transport() -> None:
    def script(connection: PeerConnection) -> None:
        while request := connection.read_request():
            connection.send(response(request.split(b"\r\n")[0]))

    with scripted_peer(script) as proxy:
        async with allswell.AsyncClient(proxy=proxy.url, trust_env=False) as client:
            assert (await client.get("http://origin.example/x")).text == "GET http://origin.example/x HTTP/1.1"


def test_no_version_is_no_client() -> None:
    with pytest.raises(ValueError, match="no version"):
        allswell.AsyncTransport(http1=False, http2=False, http3=False)
