"""TLS servers that get it wrong, or worse: OpenSSL on both sides, and what passes between them in our hands."""

from __future__ import annotations

import ssl
from time import process_time

import pytest

from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import ByteStream, ReceiveBuffer
from allswell._filters.tls import TlsFilter
from allswell._report import LayerEnd, Outcome
from tests.support.certificates import certificates

pytestmark = pytest.mark.anyio
_VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Wire(ByteStream):
    """A server at the other end of nothing: what is written reaches it at once, what it answers can be read at once.

    :ivar server: its TLS.
    :ivar arriving: what will be read.
    """

    name = "wire"
    unsent = 0
    drained = False

    def __init__(self, context: ssl.SSLContext, *, piece: int = 256 * 1024) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.arriving = b""
        self._piece = piece

    def say(self, data: bytes = b"") -> None:
        """The server's content, and what else it has to say."""
        if data:
            self.server.write(data)
        self.arriving += self._outgoing.read()

    def hear(self, data: bytes | memoryview) -> None:
        """Bytes reach the server, whatever they are."""
        self._incoming.write(data)

    async def connect(self) -> None:
        """As the interface says, like all that follow."""

    def receive_nowait(self) -> memoryview | None:
        """."""
        piece, self.arriving = self.arriving[: self._piece], self.arriving[self._piece :]
        return memoryview(piece) if piece else None

    async def wait_readable(self) -> None:
        """."""
        raise AssertionError("the server has said all that it has to say")

    def catch_up(self) -> None:
        """Nothing is left undone."""

    def transmit(self, data: bytes | memoryview) -> None:
        """."""
        self.hear(data)
        try:
            self.server.do_handshake()
        except ssl.SSLWantReadError:
            pass
        self.say()

    async def flush(self) -> None:
        """."""

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        """."""
        return self.abort()

    def abort(self, *, reset: bool = True) -> LayerEnd:
        """."""
        return LayerEnd(self.name, "", "", Outcome.CLEAN)


async def connected(wire: Wire) -> TlsFilter:
    """The client's half."""
    tls = TlsFilter(
        wire,
        peer="the peer",
        context=certificates().client_context(),
        server_name="localhost",
        alpn=[],
        buffer=ReceiveBuffer(),
    )
    await tls.connect()
    return tls


@pytest.mark.parametrize("behind", [b"", b"\x17\x03\x03\x00\x20" + b"?" * 32], ids=["nothing", "something"])
@pytest.mark.parametrize("version", _VERSIONS)
async def test_content_cut_by_a_fatal_alert_is_not_whole(version: ssl.TLSVersion, behind: bytes) -> None:
    """Whoever can alter what passes can make the server say it, at any place of a body, and add a byte behind it."""
    wire = Wire(certificates().server_context(version=version))
    tls = await connected(wire)
    wire.say(b"half of it")
    wire.hear(b"\x17\x03\x03\x00\x20" + b"?" * 32)
    with pytest.raises(ssl.SSLError):
        wire.server.read(1)
    wire.say()
    wire.arriving += behind
    data = tls.receive_nowait()
    assert data is not None
    assert bytes(data) == b"half of it"
    for _ in range(3):
        with pytest.raises(TransportError, match="alert"):
            tls.receive_nowait()
    end = await tls.shutdown(Deadline.after(1))
    assert (end.said, end.heard, end.outcome) == ("", "", Outcome.ABORTED)


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("last", ["nothing", "close_notify", "garbage", "records"])
async def test_an_end_right_behind_content_is_asked_for(version: ssl.TLSVersion, last: str) -> None:
    """It came with the content, so the socket tells of nothing any more."""
    wire = Wire(certificates().server_context(version=version))
    wire.drained = True
    tls = await connected(wire)
    while tls.receive_nowait() is not None:
        pass  # tickets
    for _ in range(300 if last == "records" else 1):  # more than are decrypted in one go
        wire.say(b"content")
    if last == "close_notify":
        with pytest.raises(ssl.SSLWantReadError):
            wire.server.unwrap()
        wire.say()
    elif last == "garbage":
        wire.arriving += b"\x17\x03\x03\x00\x20" + b"?" * 32
    assert tls.receive_nowait()
    assert not wire.arriving
    assert tls.drained == (last == "nothing")


async def test_tickets_without_end_do_not_keep_us_from_everyone_else() -> None:
    context = certificates().server_context(version=ssl.TLSVersion.TLSv1_3)
    context.num_tickets = 4000  # a megabyte of them, at once
    wire = Wire(context, piece=16 * 1024)
    tls = await connected(wire)
    assert len(wire.arriving) > 500_000
    began = process_time()
    with pytest.raises(TransportError, match="without content"):
        tls.receive_nowait()
    assert process_time() - began < 2
    assert len(wire.arriving) > 300_000


async def test_some_tickets_are_fine() -> None:
    context = certificates().server_context(version=ssl.TLSVersion.TLSv1_3)
    context.num_tickets = 100
    wire = Wire(context, piece=100)
    tls = await connected(wire)
    assert tls.receive_nowait() is None
    wire.say(b"content")
    data = tls.receive_nowait()
    assert data is not None
    assert bytes(data) == b"content"


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("last", ["close_notify", "nothing", "garbage"])
async def test_goodbye_is_said_over_content_that_nobody_reads(version: ssl.TLSVersion, last: str) -> None:
    """OpenSSL would take it for a breach, and the connection would count as aborted though both sides said goodbye."""
    wire = Wire(certificates().server_context(version=version), piece=1_000_000)
    tls = await connected(wire)
    for _ in range(3000):  # more records, and more of them, than are decrypted in one go
        wire.say(b"unread")
    wire.say(bytes(500_000))
    if last == "close_notify":
        with pytest.raises(ssl.SSLWantReadError):
            wire.server.unwrap()
        wire.say()
    elif last == "garbage":
        wire.arriving += b"\x17\x03\x03\x00\x20" + b"?" * 32
    content = tls.receive_nowait()
    assert content is not None
    assert len(content)
    assert not wire.arriving  # the rest waits within the layer
    tls.say_goodbye()
    end = tls.so_far()
    if last == "garbage":
        assert (end.said, end.heard, end.outcome) == ("", "", Outcome.ABORTED)
        return
    heard, outcome = ("close_notify", Outcome.PEER_FIRST) if last == "close_notify" else ("", Outcome.TIMED_OUT)
    assert (end.said, end.heard, end.outcome) == ("close_notify", heard, outcome)
    if last == "close_notify":
        with pytest.raises(ssl.SSLZeroReturnError):  # the server has heard ours
            wire.server.read(1)
    else:
        assert wire.server.read(1) == b""
        wire.server.unwrap()
        wire.say()
        end = await tls.shutdown(Deadline.after(1))
        assert (end.said, end.heard, end.outcome) == ("close_notify", "close_notify", Outcome.CLEAN)


async def content(tls: TlsFilter) -> bytes:
    """All that has come."""
    data = b""
    while (piece := tls.receive_nowait()) is not None:
        data += piece
    return data


class Recorded:
    """One of OpenSSL's memory buffers, which never shrink.

    :ivar most: how many bytes were in it at most.
    """

    def __init__(self, buffer: ssl.MemoryBIO) -> None:
        self._buffer = buffer
        self.most = 0

    def write(self, data: memoryview) -> None:
        """."""
        self._buffer.write(data)
        self.most = max(self.most, self.pending)

    @property
    def pending(self) -> int:
        """."""
        return self._buffer.pending


@pytest.mark.parametrize("piece", [100_001, 512 * 1024])
@pytest.mark.parametrize("version", _VERSIONS)
async def test_a_long_read_leaves_no_large_buffer_behind(version: ssl.TLSVersion, piece: int) -> None:
    """An idle connection would keep it: 700 KB after one download of 10 MB."""
    wire = Wire(certificates().server_context(version=version), piece=piece)
    tls = await connected(wire)
    recorded = Recorded(tls._incoming)
    tls._incoming = recorded  # type: ignore[assignment]  # it is all that is asked of a MemoryBIO
    sent = bytes(range(256)) * 8000
    for _ in range(2):
        wire.say(sent)
        assert await content(tls) == sent
        assert recorded.pending == 0
    assert recorded.most <= 90_000


async def test_tickets_between_long_content_hide_none_of_it() -> None:
    """OpenSSL takes tickets without a word, and then asks for the rest of a record while more has come already."""
    context = certificates().server_context(version=ssl.TLSVersion.TLSv1_3)
    context.num_tickets = 300  # 77 KB of them
    wire = Wire(context, piece=512 * 1024)
    tls = await connected(wire)
    wire.drained = True
    wire.say(b"x" * 400_000)
    data = tls.receive_nowait()
    assert data is not None
    size = len(data)
    while not tls.drained and (data := tls.receive_nowait()):  # (else nobody would ask again)
        size += len(data)
    assert size == 400_000


class Twice(Wire):
    """The same, and in its content another server, which speaks TLS too: an https origin through an https proxy."""

    def __init__(self, context: ssl.SSLContext, *, piece: int) -> None:
        super().__init__(context, piece=piece)
        self.inner = Wire(context)

    def transmit(self, data: bytes | memoryview) -> None:
        """."""
        super().transmit(data)
        try:
            while True:
                self.inner.transmit(self.server.read(65536))
        except ssl.SSLWantReadError:
            self.pass_on()

    def pass_on(self) -> None:
        """What the inner server has said is content of the outer one."""
        self.say(self.inner.arriving)
        self.inner.arriving = b""


@pytest.mark.parametrize("record", [9_000, 12_345, 16_384])
@pytest.mark.parametrize("version", _VERSIONS)
async def test_two_layers_of_tls_share_a_buffer(version: ssl.TLSVersion, record: int) -> None:
    """What the inner one decrypts is written where the outer one has left the input, and must not reach the rest."""
    wire = Twice(certificates().server_context(version=version), piece=300_007)
    buffer = ReceiveBuffer()
    layers: list[TlsFilter] = []
    for lower in (lambda: wire, lambda: layers[0]):
        context = certificates().client_context()
        below: ByteStream = lower()
        layers.append(
            TlsFilter(below, peer="the peer", context=context, server_name="localhost", alpn=[], buffer=buffer)
        )
        await layers[-1].connect()
    sent = bytes(range(251)) * 9000
    for start in range(0, len(sent), record):
        wire.inner.say(sent[start : start + record])
    wire.pass_on()
    assert await content(layers[1]) == sent
