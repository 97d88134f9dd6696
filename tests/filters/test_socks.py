"""The SOCKS5 filter, and requests through it: h1 and h2, names and addresses, who asks, what it refuses."""

from __future__ import annotations

import builtins
import ssl
from typing import Any

import httpx2
import pytest

from allswell import AsyncClient, CloseReport, ConnectFailed, ProxyRefused
from allswell._deadline import Deadline
from allswell._dial.lookups import resolve
from allswell._dial.sockets import connect_tcp
from allswell._filters.interface import ReceiveBuffer
from allswell._filters.socks import Socks5Filter
from allswell._filters.stack import Stack
from allswell._filters.tcp import TcpFilter
from allswell._report import Outcome
from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, h2_tls
from tests.support.lag import PATIENCE
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.peer import ScriptedPeer, scripted_peer
from tests.support.proxies import SocksProxy
from tests.support.scripts import Ending, answers, end

pytestmark = pytest.mark.anyio

USER = ("ada", "lovelace")


def stack_to(peer: ScriptedPeer, host: str = "origin.example", **settings: Any) -> Stack[Socks5Filter]:
    tcp = TcpFilter("the proxy", lambda: connect_tcp(peer.host, peer.port, ask=resolve), ReceiveBuffer())
    return Stack(Socks5Filter(tcp, proxy="socks5://proxy.example:1080", host=host, port=443, **settings), tcp)


async def failure_of(proxy: Any, **settings: Any) -> ConnectFailed:
    with scripted_peer(proxy) as peer:
        stack = stack_to(peer, **settings)
        with pytest.raises(ConnectFailed) as caught:
            await stack.connect()
        assert [each.outcome for each in stack.abort()] == [Outcome.SKIPPED, Outcome.ABORTED]
        peer.wait_ended()
    assert caught.value.phase == "proxy"
    assert "proxy.example:1080" in str(caught.value)
    assert "lovelace" not in str(caught.value)
    return caught.value


@pytest.fixture
def trusting() -> ssl.SSLContext:
    return certificates().client_context()


@pytest.mark.parametrize("pieces", [None, 1])
@pytest.mark.parametrize("user", [None, USER])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_requests(
    scheme: str, user: tuple[str, str] | None, pieces: int | None, trusting: ssl.SSLContext
) -> None:
    script = SocksProxy(user, pieces=pieces)
    with (
        scripted_peer(script) as proxy,
        scripted_peer(answers(), tls=True) as origin,
        scripted_peer(answers()) as plain,
    ):
        proxied = httpx2.Proxy(f"{scheme}://127.0.0.1:{proxy.port}", auth=user)
        async with AsyncClient(verify=trusting, proxy=proxied) as client:
            assert (await client.get(f"{origin.url}/a")).text == "/a"
            assert (await client.get(f"{plain.url}/b")).text == "/b"
        report = client.close_report
        assert isinstance(report, CloseReport)
        assert report.clean
        kinds = sorted([layer.layer for layer in each.layers] for each in report.connections)
        assert kinds == [["h1", "socks5", "tcp"], ["h1", "tls", "socks5", "tcp"]]
        await proxy.ended(connections=2)
        await origin.ended()
        assert origin.connections[0].saw == ["close_notify", "FIN"]
        assert [each.saw for each in proxy.connections if each.received > 100] == [["FIN"], ["FIN"]]
    # With socks5 the name was resolved here, with socks5h there.
    assert (3, "localhost", origin.port) in script.targets or scheme == "socks5"
    assert (1, "127.0.0.1", origin.port) in script.targets or scheme == "socks5h"
    assert (1, "127.0.0.1", plain.port) in script.targets


async def test_http2_inside(trusting: ssl.SSLContext) -> None:
    with scripted_peer(SocksProxy()) as proxy, scripted_peer(Http2Server(), tls=h2_tls()) as origin:
        async with AsyncClient(verify=trusting, proxy=f"socks5h://127.0.0.1:{proxy.port}") as client:
            answer = await client.get(f"{origin.url}/a")
        assert (answer.http_version, answer.text) == ("HTTP/2", "/a")
        assert len(proxy.connections) == 1


async def test_names_that_only_the_proxy_knows() -> None:
    script = SocksProxy(reply=b"\x05\x04\x00\x01\x00\x00\x00\x00\x00\x00")
    with scripted_peer(script) as proxy:
        async with AsyncClient(proxy=f"socks5://127.0.0.1:{proxy.port}") as client:
            with pytest.raises(httpx2.ProxyError, match="host unreachable"):
                await client.get("http://nowhere.invalid/")
    assert script.targets == [(3, "nowhere.invalid", 80)]


@pytest.mark.parametrize(
    ("reply", "status", "words"),
    [
        (b"\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00", 2, "not allowed"),
        (b"\x05\x05", 5, "connection refused"),
        (b"\x05\x09\x00\x00", 9, "reply 9"),
    ],
)
async def test_refusals(reply: bytes, status: int, words: str) -> None:
    error = await failure_of(SocksProxy(reply=reply))
    assert isinstance(error, ProxyRefused)
    assert error.status == status
    assert words in str(error)


async def test_who_asks() -> None:
    assert "requires a login" in str(await failure_of(SocksProxy(USER)))
    wrong = await failure_of(SocksProxy(USER), auth=(b"ada", b"wrong lovelace"))
    assert "wrong name or password" in str(wrong)
    assert isinstance(wrong, ProxyRefused)
    long = await failure_of(SocksProxy(USER), auth=(b"ada", b"x" * 256))
    assert long.by == "us"
    assert "1 to 255 bytes" in str(long)
    assert (await failure_of(SocksProxy(), host="x" * 256)).by == "us"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "ended the connection without an answer"),
        (b"\x05", "ended the connection without an answer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak SOCKS5"),
        (b"\x04\x00", "does not speak SOCKS5"),
        (b"\x05\x77", "does not speak SOCKS5"),
        (b"\x05\x01", "requires a login"),
        (b"\x05\x02", "requires a login"),
        (b"\x05\x00\x04\x00\x00\x01\x00\x00\x00\x00\x00\x00", "does not speak SOCKS5"),
        (b"\x05\x00\x05\x00\x00\x02\x00\x00\x00\x00\x00\x00", "does not speak SOCKS5"),
        (b"\x05\x00\x05\x00\x00\x01\x00\x00\x00", "ended the connection without an answer"),
    ],
)
async def test_nonsense(answer: bytes, words: str) -> None:
    def script(connection: Any) -> None:
        connection.recv()
        connection.send(answer)
        end(connection, Ending.FIN)

    assert words in str(await failure_of(script))


@pytest.mark.parametrize(("kind", "address"), [(1, b"\x7f\0\0\1"), (4, bytes(16)), (3, b"\x04abcd"), (3, b"\0")])
async def test_what_follows_the_reply_is_the_tunnels(kind: int, address: bytes) -> None:
    reply = b"\x05\x00\x00" + bytes([kind]) + address + b"\x12\x34"
    with scripted_peer(SocksProxy(reply=reply + b"hello")) as peer:
        stack = stack_to(peer, "::1")
        await stack.connect()
        received = b""
        while received != b"hello":
            while (data := stack.top.receive_nowait()) is None:
                await stack.top.wait_readable()
            received += data
        assert [each.outcome for each in await stack.shutdown(Deadline.after(PATIENCE))] == [
            Outcome.CLEAN,
            Outcome.CLEAN,
        ]
        peer.wait_ended()


async def test_without_socksio(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "socksio":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with scripted_peer(SocksProxy()) as peer, pytest.raises(ConnectFailed, match=r"install allswell\[socks\]"):
        await stack_to(peer).connect()
