"""HTTP datagrams and CONNECT-UDP as callers have them (RFC 9297, RFC 9298): in all versions; ends, hostile peers."""

from __future__ import annotations

import queue
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
import httpcore2
import httpx2
import pytest
from aioquic.buffer import encode_uint_var
from hyperframe.frame import DataFrame, RstStreamFrame

import allswell
from tests.support.h2_proxy import Http2Proxy
from tests.support.h2_script import CANCEL, ENABLE_CONNECT_PROTOCOL, INITIAL_WINDOW_SIZE, Request, Talk, h2_tls
from tests.support.h3_proxy import Http3Proxy
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.quic_server import ServedConnection
from tests.support.udp_relay import UdpRelay, Weather

pytestmark = pytest.mark.anyio

_TEMPLATE = "/.well-known/masque/udp/{target_host}/{target_port}/"
_SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\n"
)
_OFFERS = {ENABLE_CONNECT_PROTOCOL: 1}


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a UDP service that sends back what it gets."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        stopping = threading.Event()

        def serve() -> None:
            while True:
                data, address = sock.recvfrom(65535)
                if stopping.is_set():
                    return
                sock.sendto(data, address)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            stopping.set()
            with socket.socket(type=socket.SOCK_DGRAM) as last:
                last.sendto(b"", sock.getsockname())
            thread.join(30)


def _capsule(payload: bytes, kind: int = 0) -> bytes:
    return encode_uint_var(kind) + encode_uint_var(len(payload)) + payload


def _http1_proxy(connection: PeerConnection) -> None:
    """CONNECT-UDP as an Upgrade (RFC 9298 §3.2). It passes capsules on one by one."""
    head = connection.read_head()
    if not head:
        return  # it was made for an extended CONNECT, which HTTP/1.1 does not have
    assert b"Upgrade: connect-udp\r\n" in head
    assert b"Capsule-Protocol: ?1\r\n" in head
    connection.requests.append(head)
    *_, host, port, _end = head.split()[1].split(b"/")
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.connect((host.decode(), int(port)))
        connection.send(_SWITCH)
        received = b""
        while data := connection.recv():
            received += data
            while len(received) > 1:
                start = 1 + (1 << (received[1] >> 6))
                end = start + (int.from_bytes(received[1:start], "big") & ((1 << (8 * (start - 1) - 2)) - 1))
                if len(received) < end:
                    break
                sock.send(received[start + 1 : end])
                received = received[end:]
                connection.send(_capsule(b"abc", 0x17) + _capsule(b"\0" + sock.recv(65535)))


@contextmanager
def _proxy(way: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A proxy: its origin, and the client's settings for this way to it."""
    with ExitStack() as stack:
        if way == "h1":
            peer = stack.enter_context(scripted_peer(_http1_proxy, tls=True))
            yield f"https://localhost:{peer.port}", {}
        elif way == "h2":
            peer = stack.enter_context(scripted_peer(Http2Proxy(settings=_OFFERS), tls=h2_tls()))
            yield f"https://localhost:{peer.port}", {}
        else:
            server = stack.enter_context(Http3Proxy(datagrams=way == "h3"))
            yield f"https://localhost:{server.port}", {"http3": "only", "quic": allswell.QuicConfig(datagrams=True)}
            assert {how for how, _ in server.up} <= {"datagram" if way == "h3" else "capsule"}


_VERSIONS = {"h1": "HTTP/1.1", "h2": "HTTP/2", "h3": "HTTP/3", "h3 without datagrams": "HTTP/3"}


@pytest.fixture(params=list(_VERSIONS))
def way(request: pytest.FixtureRequest) -> str:
    """A version of HTTP, and in HTTP/3 whether the proxy takes QUIC datagrams."""
    return str(request.param)


async def test_udp_through_a_proxy(way: str, echo: int, trusting: ssl.SSLContext) -> None:
    """Payloads of any size, also empty ones, come back as they were; then all ends cleanly."""
    with anyio.fail_after(60), _proxy(way) as (origin, settings):
        async with allswell.AsyncClient(verify=trusting, **settings) as client:
            async with allswell.connect_udp(client, origin + _TEMPLATE, "127.0.0.1", echo) as udp:
                assert udp.response.http_version == _VERSIONS[way]
                assert udp.response.status_code == 101
                largest = min(udp.max_size, 1150) if way == "h3" else 60_000
                for payload in (b"one", b"", bytes(largest), b"last"):
                    await udp.send(payload)
                    assert await udp.receive(timeout=30) == payload
                with pytest.raises(allswell.Timeout):
                    await udp.receive(timeout=0.01)
                await udp.send(b"again")
                assert await udp.receive() == b"again"
            report = await client.aclose()
    assert report.clean, report


async def test_what_does_not_fit_is_refused_and_all_goes_on(way: str, echo: int, trusting: ssl.SSLContext) -> None:
    with anyio.fail_after(60), _proxy(way) as (origin, settings):
        async with (
            allswell.AsyncClient(verify=trusting, **settings) as client,
            allswell.connect_udp(client, origin + _TEMPLATE, "127.0.0.1", echo) as udp,
        ):
            assert udp.max_size < 1300 if way == "h3" else udp.max_size == 65527
            for more in (1, 65536):
                with pytest.raises(allswell.LocalProtocolError, match="at most"):
                    await udp.send(bytes(udp.max_size + more))
            await udp.send(b"small")
            assert await udp.receive() == b"small"


async def test_many_at_once_beside_each_other(way: str, echo: int, trusting: ssl.SSLContext) -> None:
    """Senders wait for room, and a reader gets what came. (Some is lost: the sockets behind the proxy are of UDP.)"""
    heard: list[bytes] = []
    with anyio.fail_after(120), _proxy(way) as (origin, settings):
        async with (
            allswell.AsyncClient(verify=trusting, **settings) as client,
            allswell.connect_udp(client, origin + _TEMPLATE, "127.0.0.1", echo) as udp,
            anyio.create_task_group() as tasks,
        ):

            async def listen() -> None:
                async for payload in udp:
                    heard.append(payload)
                    if payload == b"over":
                        tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            for number in range(500):
                await udp.send(b"%d " % number + bytes(1000))
            while True:
                await udp.send(b"over")
                await anyio.sleep(0.05)
    numbers = [int(each.split()[0]) for each in heard if each != b"over"]
    assert set(numbers) <= set(range(500))
    assert numbers
    assert way == "h3" or numbers == sorted(numbers)


async def test_lost_packets_lose_datagrams_and_nothing_else(echo: int, trusting: ssl.SSLContext) -> None:
    with (
        anyio.fail_after(120),
        Http3Proxy() as server,
        UdpRelay(server.port, up=Weather(loss=0.2), down=Weather(loss=0.2)) as relay,
    ):
        settings: dict[str, Any] = {"http3": "only", "quic": allswell.QuicConfig(datagrams=True)}
        async with allswell.AsyncClient(verify=trusting, **settings) as client:
            template = f"https://localhost:{relay.port}{_TEMPLATE}"
            async with allswell.connect_udp(client, template, "127.0.0.1", echo) as udp:
                back, sent = 0, 0
                while back < 30:
                    sent += 1
                    await udp.send(b"%d" % sent)
                    with anyio.move_on_after(0.2):
                        while await udp.receive() != b"%d" % sent:
                            pass
                        back += 1
                assert sent > back


# How it ends


@asynccontextmanager
async def _datagrams(
    client: allswell.AsyncClient, origin: str, protocol: str = "connect-udp"
) -> AsyncIterator[allswell.HttpDatagrams]:
    """What a caller has who speaks another protocol than UDP on them: by the extensions alone."""
    async with client.stream("CONNECT", f"{origin}/", extensions={"protocol": protocol}) as response:
        assert response.status_code == 200
        yield response.extensions["datagrams"]


def _h2_peer(say: Callable[[Talk, Request], object]) -> Http2Proxy:
    def answer(talk: Talk, request: Request) -> bool:
        talk.send(talk.headers(request.stream, [(":status", "200")]))
        say(talk, request)
        return True

    return Http2Proxy(answer, settings=_OFFERS)


def _data(talk: Talk, request: Request, data: bytes, *, end: bool = False) -> None:
    talk.take_window(request, len(data))
    talk.send(DataFrame(request.stream, data, flags=["END_STREAM"] * end))


async def test_both_sides_end_the_stream(trusting: ssl.SSLContext) -> None:
    """END_STREAM both ways and nothing more; then the connection serves others."""

    def say(talk: Talk, request: Request) -> None:
        _data(talk, request, _capsule(b"hello") + _capsule(b""), end=True)

    script = _h2_peer(say)
    with scripted_peer(script, tls=h2_tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            with anyio.fail_after(30):
                for _ in range(2):
                    async with _datagrams(client, peer.url) as datagrams:
                        assert [each async for each in datagrams] == [b"hello", b""]
                        assert await datagrams.receive() is None
                        await datagrams.aclose()
                        with pytest.raises(allswell.TransportError):
                            await datagrams.send(b"late")
            report = await client.aclose()
        assert report.clean, report
    assert not [frame for frame in script.talks[0].frames if isinstance(frame, RstStreamFrame)]
    assert [request.ended for request in script.talks[0].requests.values()] == [True, True]


@pytest.mark.parametrize("when", ["before", "while it waits"])
@pytest.mark.parametrize("what", ["bytes", "datagrams"])
async def test_a_peer_that_has_ended_takes_no_more(trusting: ssl.SSLContext, what: str, when: str) -> None:
    """Its window is full, and it has ended its half: to send is an error, and no wait without end."""

    def answer(talk: Talk, request: Request) -> bool:
        talk.send(talk.headers(request.stream, [(":status", "200")]))
        while when != "before" and len(request.body) < 5000:
            talk.read()
        _data(talk, request, b"", end=True)
        return True

    async def fill(response: httpx2.Response) -> None:
        if what == "bytes":
            await response.extensions["network_stream"].write(bytes(6000))
        for _ in range(6):
            await response.extensions["datagrams"].send(bytes(1000))

    script = Http2Proxy(answer, settings=_OFFERS | {INITIAL_WINDOW_SIZE: 5000}, credits_at_once=False)
    with scripted_peer(script, tls=h2_tls()) as peer, anyio.fail_after(30):
        async with (
            allswell.AsyncClient(verify=trusting) as client,
            client.stream("CONNECT", f"{peer.url}/", extensions={"protocol": "connect-udp"}) as response,
        ):
            if when == "before":
                assert await response.extensions["network_stream"].read(1) == b""
            with pytest.raises((allswell.TransportError, httpcore2.WriteError), match=r"the tunnel to \S+ has ended"):
                await fill(response)


async def test_a_timeout_names_what_was_set(trusting: ssl.SSLContext) -> None:
    """And not the seconds that were left, after datagrams of other contexts."""

    def say(talk: Talk, request: Request) -> None:
        _data(talk, request, _capsule(b"\x02another context"))

    with scripted_peer(_h2_peer(say), tls=h2_tls()) as peer:
        async with (
            allswell.AsyncClient(verify=trusting) as client,
            allswell.connect_udp(client, peer.url + _TEMPLATE, "192.0.2.1", 53) as udp,
        ):
            with pytest.raises(allswell.Timeout, match=r"no datagram within 0\.5 s"):
                await udp.receive(timeout=0.5)


async def test_a_reset_is_an_error(trusting: ssl.SSLContext) -> None:
    def say(talk: Talk, request: Request) -> None:
        _data(talk, request, _capsule(b"hello"))
        talk.rst(request.stream, CANCEL)

    with scripted_peer(_h2_peer(say), tls=h2_tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client, _datagrams(client, peer.url) as datagrams:
            assert await datagrams.receive() == b"hello"
            with pytest.raises(allswell.TransportError, match="reset"):
                await datagrams.receive()
            with pytest.raises(allswell.TransportError):
                await datagrams.send(b"x")


async def test_leaving_without_a_close_resets_the_stream(trusting: ssl.SSLContext) -> None:
    script = _h2_peer(lambda talk, request: None)
    with scripted_peer(script, tls=h2_tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            async with _datagrams(client, peer.url) as datagrams:
                await datagrams.send(b"x")
            await anyio.to_thread.run_sync(script.talks[0].wait_for, "RST_STREAM 1")


async def test_a_refusal_is_told(trusting: ssl.SSLContext) -> None:
    def refuse(talk: Talk, request: Request) -> bool:
        talk.answer(request, b"not you", status=403)
        return True

    with scripted_peer(Http2Proxy(refuse, settings=_OFFERS), tls=h2_tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            with pytest.raises(allswell.ProxyRefused) as caught:
                async with allswell.connect_udp(client, peer.url + _TEMPLATE, "192.0.2.1", 53):
                    pytest.fail("the proxy refused")
            assert (caught.value.status, caught.value.body) == (403, b"not you")


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/udp/{target_host}/{target_port}/", "/udp/2001%3Adb8%3A%3A1/53/"),
        ("/?h={target_host}&p={target_port}", "/?h=2001%3Adb8%3A%3A1&p=53"),
        ("/udp{?target_host,target_port}", "/udp?target_host=2001%3Adb8%3A%3A1&target_port=53"),
        ("/udp?a=b{&target_host,target_port}", "/udp?a=b&target_host=2001%3Adb8%3A%3A1&target_port=53"),
    ],
)
async def test_templates(trusting: ssl.SSLContext, template: str, path: str) -> None:
    paths: list[str] = []

    def refuse(talk: Talk, request: Request) -> bool:
        paths.append(request.path)
        talk.answer(request, b"", status=403)
        return True

    with scripted_peer(Http2Proxy(refuse, settings=_OFFERS), tls=h2_tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            with pytest.raises(allswell.ProxyRefused):
                async with allswell.connect_udp(client, peer.url + template, "2001:db8::1%eth0", 53):
                    pytest.fail("the proxy refused")
    assert paths == [path]


@pytest.mark.parametrize("template", ["/{target_host}/", "/{target_host}/{port}", "/{+target_host}/{target_port}", "/"])
async def test_what_is_no_template(template: str) -> None:
    async with allswell.AsyncClient() as client:
        given = f"https://me:secret@proxy.example{template}?token=secret"
        with pytest.raises(ValueError, match="target_port") as caught:
            async with allswell.connect_udp(client, given, "o.example", 53):
                pytest.fail("that is none")
        assert "secret" not in str(caught.value)
        with pytest.raises(ValueError, match="port must be from 1 to 65535, not 0"):
            async with allswell.connect_udp(client, f"https://proxy.example{_TEMPLATE}", "o.example", 0):
                pytest.fail("that is none")


async def test_ordinary_responses_have_none(echo: int, trusting: ssl.SSLContext) -> None:
    """Nor has a CONNECT for TCP."""
    with Http3Proxy() as server, socket.create_server(("127.0.0.1", 0)) as origin:
        url, target = f"https://localhost:{server.port}", f"127.0.0.1:{origin.getsockname()[1]}"
        async with allswell.AsyncClient(verify=trusting, http3="only") as client:
            assert "datagrams" not in (await client.get(f"{url}/hello")).extensions
            async with client.stream("CONNECT", url, extensions={"target": target}) as response:
                assert response.status_code == 200
                assert "datagrams" not in response.extensions
            assert client.pool is not None
            ordinary = await client.pool.request("GET", f"{url}/hello")
            with pytest.raises(allswell.LocalProtocolError, match="no datagrams"):
                ordinary.datagrams  # noqa: B018


# Hostile proxies


@pytest.mark.parametrize(
    ("said", "end", "words"),
    [
        (b"\x00\x80\x01\x00\x00", False, "sent a datagram of 65536 bytes"),
        (b"\x00\xff\xff\xff\xff\xff\xff\xff\xff", False, "sent a datagram of 4611686018427387903 bytes"),
        (b"\x00\x05\x00a", True, "ended the stream within a capsule"),
        (b"\x40", True, "ended the stream within a capsule"),
        (b"\x11\xff\xff\xff\xff\xff\xff\xff\xffabc", True, "ended the stream within a capsule"),
    ],
)
async def test_capsules_that_break_it(trusting: ssl.SSLContext, said: bytes, end: bool, words: str) -> None:
    """The stream is reset, and the connection goes on."""
    script = _h2_peer(lambda talk, request: _data(talk, request, _capsule(b"first") + said, end=end))
    with scripted_peer(script, tls=h2_tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            with anyio.fail_after(30):
                async with _datagrams(client, peer.url) as datagrams:
                    assert await datagrams.receive() == b"first"
                    with pytest.raises(allswell.RemoteProtocolError, match=words):
                        await datagrams.receive()
                async with _datagrams(client, peer.url) as datagrams:
                    assert await datagrams.receive() == b"first"
        assert len(peer.connections) == 1


async def test_a_udp_payload_that_is_too_large_resets_the_stream(trusting: ssl.SSLContext) -> None:
    """None may be larger than 65527 bytes (RFC 9298 §5)."""

    def say(talk: Talk, request: Request) -> None:
        for size in (65527, 65528):
            said = _capsule(b"\0" + bytes(size))
            for start in range(0, len(said), 16384):
                _data(talk, request, said[start : start + 16384])

    script = _h2_peer(say)
    with scripted_peer(script, tls=h2_tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            with anyio.fail_after(30):
                async with allswell.connect_udp(client, peer.url + _TEMPLATE, "192.0.2.1", 53) as udp:
                    assert await udp.receive() == bytes(65527)
                    with pytest.raises(allswell.RemoteProtocolError, match="sent a datagram of 65529 bytes"):
                        await udp.receive()
                await anyio.to_thread.run_sync(script.talks[0].wait_for, "RST_STREAM 1")


@pytest.mark.parametrize("upgrade", [b"Upgrade: websocket\r\n", b""])
async def test_a_proxy_that_switches_to_something_else(trusting: ssl.SSLContext, upgrade: bytes) -> None:
    """The attempt has failed, and its connection is aborted (RFC 9298 §3.3)."""

    def switch(connection: PeerConnection) -> None:
        if connection.read_head():
            connection.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n" + upgrade + b"\r\n")
            connection.recv()

    with scripted_peer(switch, tls=True) as peer:
        async with allswell.AsyncClient(verify=trusting) as client:
            with anyio.fail_after(30), pytest.raises(allswell.RemoteProtocolError, match="not to connect-udp"):
                async with allswell.connect_udp(client, peer.url + _TEMPLATE, "192.0.2.1", 53):
                    pytest.fail("it is another protocol")


@pytest.mark.timeout(60)
async def test_a_datagram_beside_a_raw_stream_is_no_reason_to_look_again(trusting: ssl.SSLContext) -> None:
    """TLS on a stream of HTTP/3 never takes datagrams. One of them made it look for bytes for ever, without a wait."""

    def answer(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> bool:
        assert connection.h3 is not None
        connection.head(stream, 200)
        connection.bodies[stream] = 0  # of which this server keeps count
        connection.h3.send_datagram(stream, b"x")
        return True

    with Http3Proxy(answer) as server:
        origin = f"https://localhost:{server.port}"
        settings: dict[str, Any] = {"http3": "only", "quic": allswell.QuicConfig(datagrams=True)}
        async with (
            allswell.AsyncClient(verify=trusting, **settings) as client,
            client.stream("CONNECT", f"{origin}/", extensions={"protocol": "x"}) as response,
        ):
            stream = response.extensions["network_stream"]
            with pytest.raises(Exception, match="took longer than 2 s"):
                await stream.start_tls(trusting, "localhost", timeout=2)


async def test_an_unknown_capsule_without_end_takes_no_memory(trusting: ssl.SSLContext) -> None:
    """Four megabytes of one that announces 2^62 - 1 bytes: they are skipped as they come, and have their credit."""
    passed = threading.Event()

    def say(talk: Talk, request: Request) -> None:
        _data(talk, request, b"\x11\xff\xff\xff\xff\xff\xff\xff\xff")
        for _ in range(256):
            _data(talk, request, bytes(16384))
        passed.set()

    with scripted_peer(_h2_peer(say), tls=h2_tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client, _datagrams(client, peer.url) as datagrams:
            with anyio.fail_after(60):
                while not passed.is_set():
                    with pytest.raises(allswell.Timeout):
                        await datagrams.receive(timeout=0.05)
            assert len(datagrams._capsules._received) == 0


async def test_unread_capsules_stay_with_the_proxy(trusting: ssl.SSLContext) -> None:
    """Nobody receives, so the stream's window stays shut."""
    talks: queue.SimpleQueue[tuple[Talk, Request]] = queue.SimpleQueue()

    def say(talk: Talk, request: Request) -> None:
        talks.put((talk, request))
        sent = request.window
        while request.window >= 1003:
            _data(talk, request, _capsule(bytes(1000)))
        talk.ping()
        assert sent > 1003

    with scripted_peer(_h2_peer(say), tls=h2_tls()) as peer:
        async with allswell.AsyncClient(verify=trusting) as client, _datagrams(client, peer.url) as datagrams:
            talk, request = await anyio.to_thread.run_sync(talks.get)  # the response's head may come before
            await anyio.to_thread.run_sync(talk.wait_for, "PING")  # what was said before it has been taken
            assert request.window < 1003
            for _ in range(50):
                assert await datagrams.receive(timeout=30) == bytes(1000)


async def test_unread_quic_datagrams_are_dropped(trusting: ssl.SSLContext) -> None:
    """1024 wait. Those that come then are lost, and counted; later ones are received again."""

    def flood(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> bool:
        connection.head(stream, 200)
        streams.append(stream)
        return True

    def send(connection: ServedConnection, first: int, count: int) -> None:
        assert connection.h3 is not None
        for number in range(first, first + count):
            connection.h3.send_datagram(streams[0], b"%d" % number)
        connection.flush()

    streams: list[int] = []
    with Http3Proxy(flood) as server:
        origin = f"https://localhost:{server.port}"
        settings: dict[str, Any] = {"http3": "only", "quic": allswell.QuicConfig(datagrams=True)}
        async with allswell.AsyncClient(verify=trusting, **settings) as client, _datagrams(client, origin) as datagrams:
            assert datagrams.dropped == 0
            with anyio.fail_after(60):
                first = 0
                while not datagrams.dropped:
                    await anyio.to_thread.run_sync(server.call, lambda connection, at=first: send(connection, at, 100))
                    first += 100
                    await anyio.sleep(0.01)
                heard: list[bytes | None] = []
                while len(heard) < 1024:
                    heard.append(await datagrams.receive())
                await anyio.to_thread.run_sync(server.call, lambda connection: send(connection, 1_000_000, 1))
                while heard[-1] != b"1000000":
                    heard.append(await datagrams.receive())
            assert len(heard) <= first - datagrams.dropped + 1


async def test_a_datagram_for_a_request_that_has_none(trusting: ssl.SSLContext) -> None:
    """The request fails, with H3_DATAGRAM_ERROR (RFC 9297 §2). The connection goes on."""

    def stray(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        assert connection.h3 is not None
        connection.head(stream, 200)
        connection.h3.send_datagram(stream, b"\0what is this?")

    with Http3Proxy() as server:
        server.routes[b"/stray"] = stray
        origin = f"https://localhost:{server.port}"
        settings: dict[str, Any] = {"http3": "only", "quic": allswell.QuicConfig(datagrams=True)}
        async with allswell.AsyncClient(verify=trusting, **settings) as client:
            with pytest.raises(Exception, match="a datagram for an ordinary request"):
                await client.get(f"{origin}/stray")
            assert (await client.get(f"{origin}/hello")).text == "hello"
        server.settle()
        assert [code for _, code in server.all("stop")] == [0x33]
        assert len(server.connections) == 1
