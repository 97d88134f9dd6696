"""The UDP filter: batches both ways, a full socket, ICMP, rebinding, and kernels that cannot do it in runs."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from allswell._deadline import Deadline
from allswell._errors import ConnectFailed, TransportError
from allswell._filters.interface import Run
from allswell._filters.udp import UdpFilter
from allswell._report import Outcome

pytestmark = pytest.mark.anyio


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """The other end, a plain socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        yield sock


async def connected(peer: socket.socket) -> UdpFilter:
    udp = UdpFilter(socket.AF_INET, peer.getsockname())
    await udp.connect()
    return udp


async def receive(udp: UdpFilter, count: int) -> list[bytes]:
    datagrams: list[bytes] = []
    with anyio.fail_after(30):
        while len(datagrams) < count:
            await udp.wait_readable()
            datagrams += [each for run in udp.receive_nowait() or () for each in run.datagrams()]
    return datagrams


@pytest.mark.parametrize("offload", [True, False])
async def test_batches_keep_their_borders_and_order(peer: socket.socket, offload: bool) -> None:
    udp = await connected(peer)
    if not offload:
        udp._gso = udp._gro = False
    sizes = [1200] * 150 + [300, 1200, 1250, 1, 1, 1]
    sent = [bytes([index % 256]) * size for index, size in enumerate(sizes)]
    udp.send(sent)
    assert udp.unsent == 0
    assert [peer.recv(65535) for _ in sent] == sent
    for datagram in sent[:40]:
        peer.sendto(datagram, udp.extra("client_addr"))
    assert await receive(udp, 40) == sent[:40]
    assert udp.receive_nowait() is None
    assert (await udp.shutdown(Deadline.after(1))).outcome is Outcome.CLEAN


async def test_a_run_from_the_peer_is_taken_apart(peer: socket.socket) -> None:
    udp = await connected(peer)
    peer.connect(udp.extra("client_addr"))
    sender = UdpFilter(socket.AF_INET, udp.extra("client_addr"))
    sender._sock, sender._gso = peer, udp._gso  # sends in runs, which the kernel may hand over as such
    sent = [bytes([index]) * 1000 for index in range(40)] + [b"last"]
    sender.send(sent)
    assert await receive(udp, 41) == sent
    udp.abort()


class _Full:
    """A socket that takes a datagram only every other time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.refusals = 0
        self._turn = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes) -> int:
        self._turn = not self._turn
        if self._turn:
            self.refusals += 1
            raise BlockingIOError(errno.EAGAIN, "full")
        return self._sock.send(data)


async def test_a_full_socket_loses_nothing(peer: socket.socket) -> None:
    udp = await connected(peer)
    assert udp._sock is not None
    full = _Full(udp._sock)
    udp._sock, udp._gso = full, False  # type: ignore[assignment]  # stands in for a kernel under pressure
    sent = [bytes([index]) * 100 for index in range(20)]
    udp.send(sent)
    assert udp.unsent == 2000
    with anyio.fail_after(30):
        await udp.flush()
    assert udp.unsent == 0
    assert full.refusals == 20
    assert [peer.recv(65535) for _ in sent] == sent
    udp._sock = full._sock
    udp.abort()


async def test_an_interface_without_segmentation(peer: socket.socket) -> None:
    udp = await connected(peer)
    assert udp._sock is not None
    real = udp._sock

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def sendmsg(self, *_: Any) -> int:
            raise OSError(errno.EIO, "no segmentation here")

    udp._sock, udp._gso = Refusing(), True  # type: ignore[assignment]  # stands in for such an interface
    udp.send([b"a" * 10, b"b" * 10, b"c" * 10])
    assert [peer.recv(100) for _ in range(3)] == [b"a" * 10, b"b" * 10, b"c" * 10]
    assert not udp._gso
    udp._sock = real
    udp.abort()


async def test_an_unreachable_port_is_an_error(peer: socket.socket) -> None:
    udp = await connected(peer)
    peer.close()
    udp.send([b"x"])
    with anyio.fail_after(30), pytest.raises(TransportError, match="unreachable") as caught:
        await receive(udp, 1)
    assert caught.value.by == "peer"
    udp.send([b"x"])
    assert udp._sock is not None
    with anyio.fail_after(30):
        await anyio.wait_readable(udp._sock)  # the news is there
    udp.send([b"y"])  # told to a send: remembered for the reader
    assert udp.failed
    with pytest.raises(TransportError, match="unreachable"):
        udp.receive_nowait()
    udp.abort()


@pytest.mark.parametrize("told_to", ["send", "read"])
async def test_an_unreachable_port_in_the_words_of_windows(peer: socket.socket, told_to: str) -> None:
    """Its sockets say WSAECONNRESET, where others say ECONNREFUSED."""
    udp = await connected(peer)
    real = udp._sock
    assert real is not None

    class Windows:
        def send(self, data: bytes) -> int:
            if told_to == "send":
                raise ConnectionResetError
            return len(data)

        def recv(self, _: int) -> bytes:
            raise ConnectionResetError

    udp._sock, udp._gso, udp._gro, udp._hears_marks = Windows(), False, False, False  # type: ignore[assignment]  # one of theirs
    udp.send([b"x"])
    assert udp.failed is (told_to == "send")
    with pytest.raises(TransportError, match="unreachable") as caught:
        udp.receive_nowait()
    assert caught.value.by == "peer"
    udp._sock = real
    udp.abort()


async def test_a_datagram_that_is_too_large_is_dropped_and_no_news_of_the_way(peer: socket.socket) -> None:
    udp = await connected(peer)
    udp.send([b"x" * 65530, b"fits"])
    assert udp.lost == 0
    assert peer.recv(100) == b"fits"
    udp.abort()


class _Obstructed:
    """A socket whose sends fail with one error, so many times; and of those before, one is told to a read."""

    def __init__(self, real: socket.socket, error: int, times: int) -> None:
        self._real = real
        self._error = error
        self.times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _fail(self) -> None:
        if self.times:
            self.times -= 1
            raise OSError(self._error, "told by the network")

    def send(self, data: bytes) -> int:
        self._fail()
        return self._real.send(data)

    def sendmsg(self, *arguments: Any) -> int:
        self._fail()
        return self._real.sendmsg(*arguments)

    def recvmsg(self, *arguments: Any) -> Any:
        self._fail()
        return self._real.recvmsg(*arguments)


@pytest.mark.parametrize("count", [1, 3])
async def test_an_error_of_an_earlier_datagram_costs_none(peer: socket.socket, count: int) -> None:
    """A router's ICMP: the kernel tells it to the next send, which sends nothing."""
    udp = await connected(peer)
    assert udp._sock is not None
    real = udp._sock
    udp._sock = _Obstructed(real, errno.EHOSTUNREACH, 1)  # type: ignore[assignment]  # stands in for such a kernel
    sent = [bytes([index]) * 10 for index in range(count)]
    udp.send(sent)
    assert [peer.recv(100) for _ in sent] == sent
    assert udp.lost == 0
    assert udp.obstacle is None
    udp._sock = real
    udp.abort()


async def test_obstacles_are_remembered(peer: socket.socket) -> None:
    """Of what is sent, and of what ICMP tells a reader: but not that the MTU is small (RFC 9000 §14.2.1)."""
    udp = await connected(peer)
    assert udp._sock is not None
    real, udp._gso = udp._sock, False
    for error, reading, expected in (
        (errno.ENETUNREACH, False, errno.ENETUNREACH),
        (errno.EMSGSIZE, False, errno.EMSGSIZE),
        (errno.ENOBUFS, False, None),
        (errno.EHOSTUNREACH, True, errno.EHOSTUNREACH),
        (errno.EMSGSIZE, True, None),
    ):
        udp.obstacle = None
        udp._sock = _Obstructed(real, error, 1 if reading else 2)  # type: ignore[assignment]  # stands in for such a kernel
        if reading:
            assert udp.receive_nowait() is None
        else:
            udp.send([b"x"])
        assert (udp.obstacle.errno if udp.obstacle is not None else None) == expected
    assert udp.lost == 2
    udp._sock = real
    udp.abort()


async def test_rebinding_changes_the_port_and_wakes_the_reader(peer: socket.socket) -> None:
    udp = await connected(peer)
    before = udp.extra("client_addr")
    got: list[bytes] = []

    async def read() -> None:
        got.extend(await receive(udp, 1))

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        udp.rebind("127.0.0.3")
        after = udp.extra("client_addr")
        assert after[0] == "127.0.0.3"
        peer.sendto(b"old", before)
        peer.sendto(b"new", after)
    assert got == [b"new"]
    with pytest.raises(ConnectFailed):
        udp.rebind("192.0.2.1")
    assert udp.extra("client_addr") == after
    udp.abort()


async def test_the_end(peer: socket.socket) -> None:
    never = UdpFilter(socket.AF_INET, peer.getsockname())
    assert never.abort().outcome is Outcome.SKIPPED
    udp = await connected(peer)
    assert udp.extra("server_addr") == peer.getsockname()
    end = await udp.shutdown(Deadline.after(1))
    assert (end.layer, end.said, end.heard, end.outcome) == ("udp", "", "", Outcome.CLEAN)
    assert udp.abort() is end
    with pytest.raises(TransportError):
        udp.receive_nowait()
    udp.send([b"into the void"])
    assert udp.unsent == 0


async def test_ipv6() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        sock.settimeout(5)
        udp = UdpFilter(socket.AF_INET6, sock.getsockname())
        await udp.connect()
        udp.send([b"x" * 1200] * 3)
        assert [len(sock.recv(2000)) for _ in range(3)] == [1200] * 3
        udp.abort()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_marks(host: str) -> None:
    v6 = ":" in host
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind((host, 0))
        peer.settimeout(5)
        peer.setsockopt(*((socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS) if v6 else (socket.IPPROTO_IP, 13)), 1)
        udp = UdpFilter(peer.family, peer.getsockname())
        await udp.connect()
        assert udp.send_marked(2)
        udp.send([b"a"])
        _, ancillary, _, here = peer.recvmsg(10, 64)
        assert ancillary[0][2][0] == 2
        udp.rebind()
        udp.send([b"a"])
        _, ancillary, _, here = peer.recvmsg(10, 64)
        assert ancillary[0][2][0] == 2  # the new socket's too
        mark = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if v6 else (socket.IPPROTO_IP, socket.IP_TOS)
        for ecn in (0, 3, 1):
            peer.setsockopt(*mark, ecn)
            peer.sendto(b"b", here)
        with anyio.fail_after(30):
            await udp.wait_readable()
        assert udp.receive_nowait() == [Run(b"b", [1], mark) for mark in (0, 3, 1)]
        udp.abort()
        assert not udp.send_marked(0)


async def test_changing_places_with_one_beside_it(peer: socket.socket) -> None:
    udp = await connected(peer)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.settimeout(5)
        other = udp.sibling(elsewhere.getsockname())
        other.send([b"hello"])
        data, there = elsewhere.recvfrom(10)
        assert data == b"hello"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(udp.wait_readable)  # woken by the change, though nothing came
            await anyio.wait_all_tasks_blocked()
            udp.swap(other)
        assert (udp.address, other.address) == (elsewhere.getsockname(), peer.getsockname())
        elsewhere.sendto(b"here", there)
        assert await receive(udp, 1) == [b"here"]
        other.send([b"still"])
        assert peer.recv(10) == b"still"
        for each in (udp, other):
            each.abort()
