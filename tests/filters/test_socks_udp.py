"""Datagrams through a SOCKS5 relay: their headers, what is no datagram, and the end of the relay."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from allswell._deadline import Deadline
from allswell._dial.lookups import resolve
from allswell._dial.sockets import connect_tcp
from allswell._errors import ConnectFailed, TransportError
from allswell._filters.interface import ReceiveBuffer
from allswell._filters.socks_udp import SocksDatagrams, relay_address
from allswell._filters.stack import Stack
from allswell._filters.tcp import TcpFilter
from allswell._filters.udp import UdpFilter
from allswell._report import Outcome
from allswell._tasks import current_host
from tests.support.lag import PATIENCE
from tests.support.leaks import no_leaked_sockets  # noqa: F401  a fixture
from tests.support.peer import Script, ScriptedPeer, scripted_peer
from tests.support.scripts import Ending, says

pytestmark = pytest.mark.anyio


@contextmanager
def relay(script: Script | None = None) -> Iterator[tuple[socket.socket, ScriptedPeer]]:
    """A relay's socket, and the connection that it was asked for on."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock, scripted_peer(script or says(b"")) as control:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock, control


async def stack_to(sock: socket.socket, control: ScriptedPeer, host: str = "10.0.0.1") -> Stack[SocksDatagrams]:
    tcp = TcpFilter("the proxy", lambda: connect_tcp(control.host, control.port, ask=resolve), ReceiveBuffer())
    stack = Stack(tcp)
    await stack.connect()
    udp = UdpFilter(socket.AF_INET, sock.getsockname())
    over = await stack.push(udp)
    return await over.push(SocksDatagrams(udp, tcp, proxy="socks5://proxy.example", host=host, port=443))


async def received(datagrams: SocksDatagrams) -> list[bytes]:
    with anyio.fail_after(30):
        while (batch := datagrams.receive_nowait()) is None:
            await datagrams.wait_readable()
    return [each for run in batch for each in run.datagrams()]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.1", b"\x01\x0a\0\0\x01"),
        ("2001:db8::1", b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01"),
        ("origin.example", b"\x03\x0eorigin.example"),
    ],
)
async def test_each_datagram_has_a_header(host: str, address: bytes) -> None:
    with relay() as (sock, control):
        stack = await stack_to(sock, control, host)
        top = stack.top
        top.send([b"one", b"two!"])
        header = b"\0\0\0" + address + b"\x01\xbb"
        datagram, client = sock.recvfrom(1000)
        assert [datagram, sock.recv(1000)] == [header + b"one", header + b"two!"]
        for junk in (b"", b"\0\0\0\x01", b"\0\0\x01" + address + b"\x01\xbbfragment", b"\0\0\0\x07abcdefghijkl"):
            sock.sendto(junk, client)
        sock.sendto(b"\0\0\0\x03\xffshort", client)
        sock.sendto(header + b"answer", client)
        sock.sendto(b"\0\0\0\x01\x7f\0\0\x01\x12\x34", client)
        heard: list[bytes] = []
        while len(heard) < 2:
            heard += await received(top)
        assert heard == [b"answer", b""]
        assert top.unsent == 0
        ends = await stack.shutdown(Deadline.after(PATIENCE))
        assert [(end.layer, end.outcome) for end in ends] == [
            ("socks5-udp", Outcome.CLEAN),
            ("udp", Outcome.CLEAN),
            ("tcp", Outcome.CLEAN),
        ]
        control.wait_ended()
        assert control.connections[0].saw == ["FIN"]


@pytest.mark.parametrize("how", [Ending.FIN, Ending.RST])
async def test_the_relay_ends_with_its_connection(how: Ending) -> None:
    with relay(says(b"what nobody asked for", how)) as (sock, control):
        stack = await stack_to(sock, control)
        top = stack.top
        assert top.receive_nowait() is None
        top._control.transmit(b"the script's cue\r\n\r\n")
        with pytest.raises(TransportError, match=r"socks5://proxy\.example ended the relay"):
            await received(top)
        await top.wait_readable()
        with pytest.raises(TransportError, match="ended the relay"):
            top.receive_nowait()
        stack.abort()
        control.wait_ended()


async def test_who_listens_hears_of_the_end() -> None:
    """Where the event loop calls us (asyncio); on trio there is nothing to listen with."""
    with relay() as (sock, control):
        stack = await stack_to(sock, control)
        top = stack.top
        heard = anyio.Event()
        if top.listen(current_host(), heard.set):
            control.wait_accepted()
            control.connections[0].fin()
            with anyio.fail_after(30):
                await heard.wait()
            with pytest.raises(TransportError, match="ended the relay"):
                top.receive_nowait()
            top.listen(current_host(), None)
        stack.abort()
        control.wait_ended()


async def test_it_cannot_move() -> None:
    with relay() as (sock, control):
        stack = await stack_to(sock, control)
        top = stack.top
        for move in (top.rebind, lambda: top.sibling(("10.0.0.2", 1))):
            with pytest.raises(ConnectFailed):
                move()
        assert top.send_marked(2) is False
        stack.abort()
        with pytest.raises(ConnectFailed, match="at most 255 bytes"):
            await stack_to(sock, control, "x" * 256)
        control.wait_ended(connections=2)


def test_where_the_relay_is() -> None:
    assert relay_address(("10.0.0.9", 5), "10.0.0.1") == (socket.AF_INET, ("10.0.0.9", 5))
    assert relay_address(("0.0.0.0", 5), "10.0.0.1") == (socket.AF_INET, ("10.0.0.1", 5))
    assert relay_address(("::", 5), "2001:db8::1") == (socket.AF_INET6, ("2001:db8::1", 5))
    assert relay_address(("relay.example", 5), "10.0.0.1") == (socket.AF_INET, ("10.0.0.1", 5))
