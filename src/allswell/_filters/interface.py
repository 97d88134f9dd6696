"""What a filter is: one layer of bytes below HTTP, which connects, carries, says goodbye and ends.

A filter knows the one below it and nothing above. Reading and writing are synchronous: ``receive_nowait`` takes what is
there, ``write`` hands over what it can and keeps the rest. Only connecting, saying goodbye, and waiting for the
socket to be ready are coroutines. So whole batches pass through all layers without a task switch, and no caller's
cancellation can fall between two halves of a write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from mmap import ACCESS_COPY, mmap
from typing import Any, Generic, NamedTuple, TypeVar

from allswell._addresses import SocketAddress
from allswell._deadline import Deadline
from allswell._errors import ConnectFailed, TransportError
from allswell._report import LayerEnd, Outcome
from allswell._tasks import TaskHost

#: How often, at most, an end that waits for nothing reads what has come. Unread input would turn our FIN into RST. A
#: peer that never stops would keep us reading.
LAST_READS = 16

Input_co = TypeVar("Input_co", covariant=True)


class Filter(ABC):
    """One layer of a connection's stack.

    :cvar name: what reports and traces call it: ``"tcp"``, ``"tls"``, ``"quic"``, …
    """

    name: str

    @abstractmethod
    async def connect(self) -> None:
        """Make this layer ready; the one below already is. The caller brings the deadline.

        :raises ConnectFailed: naming the peer and what it did.
        """

    def say_goodbye(self) -> None:
        """Say this layer's goodbye now, as far as possible, and wait for nothing. Idempotent; never raises.

        The layer still hears: :meth:`shutdown` then only waits for the answer.
        """
        return  # the default: a layer without a goodbye

    @abstractmethod
    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        """Say goodbye and wait for the answer until the deadline. The layer below is used, and not ended.

        If the deadline has passed, it still says what it can say at once, and waits for nothing. It raises nothing but
        cancellation.
        """

    @abstractmethod
    def abort(self, *, reset: bool = True) -> LayerEnd:
        """End this layer now, without anything that the peer could take for a completed transfer. Idempotent.

        After :meth:`say_goodbye` this ends the wait for the answer.

        :param reset: TCP ends with RST. If ``False``, it ends with FIN: last words (an HTTP/2 GOAWAY with its error
            code) may be on their way, and RST would overtake them.
        """

    @abstractmethod
    def catch_up(self) -> None:
        """Do what the event loop has not done yet: read what a tunnel's connection has received, send what is unsent.

        Called before a timeout fires, because the program may have blocked the event loop. Never raises.
        """

    def so_far(self) -> LayerEnd:
        """Its end so far: what was said and heard until now."""
        return LayerEnd(self.name, "", "", Outcome.CLEAN)  # the default: a layer without a goodbye

    def extra(self, name: str) -> Any:
        """A fact about this layer (``"ssl_object"``, ``"socket"``, ``"server_addr"``, …), or ``None``.

        (Of any type: what httpx2 documents as ``get_extra_info`` gives it to the caller.)
        """
        return None


class Sends(Filter):
    """A filter that sends what it is given at once, as far as possible, and keeps the rest."""

    @property
    @abstractmethod
    def unsent(self) -> int:
        """How many bytes could not be handed over yet."""

    @abstractmethod
    async def flush(self) -> None:
        """Hand over what is unsent, waiting as long as it takes. Only one task may do this at a time.

        :raises TransportError: when the layer is gone.
        """


class Carrier(Sends, Generic[Input_co]):
    """A filter that a backend can sit on. A :class:`ByteStream` gives bytes, a multiplexer (QUIC) gives events."""

    @property
    def truncated(self) -> bool:
        """After its end: whether it ended without the layer's goodbye (TLS without close_notify)."""
        return False

    @property
    def drained(self) -> bool:
        """Whether ``receive_nowait`` has just returned all that had arrived, so another call is not worth it.

        ``False`` if that is not known.
        """
        return False

    @abstractmethod
    def receive_nowait(self) -> Input_co | None:
        """Return what has arrived, or ``None`` if nothing has. The caller must loop: there may be more.

        :raises TransportError: when the layer is gone (a reset).
        """

    def quiet(self) -> bool:
        """Whether the socket says that nothing has arrived. This takes less time than ``receive_nowait``.

        ``False`` if that is not known: then ask ``receive_nowait``.

        :raises TransportError: when the layer is gone (a reset).
        """
        return False

    @abstractmethod
    async def wait_readable(self) -> None:
        """Wait until ``receive_nowait`` is worth a call. Spurious returns are allowed.

        :raises TransportError: when the layer is gone.
        """

    def listen(self, function: Callable[[], None] | None) -> bool:
        """Call this function whenever something has arrived, until ``None`` is given.

        It is not called for what is there already, so a listener looks first. Returns whether this is possible here.
        If not, use :meth:`wait_readable`. Never use both at a time.
        """
        return False

    @abstractmethod
    def transmit(self, data: bytes | memoryview) -> None:
        """Send the backend's output now, as far as possible, and keep the rest for :meth:`flush`.

        A multiplexer has its output queued already. It is given ``b""``, and builds and sends its datagrams.
        Never raises. If the peer is gone, the next read says so, after the peer's last words.
        """

    @property
    def dead(self) -> bool:
        """Whether a write has failed, so nothing more can be sent. (The peer's last words may still be readable.)"""
        return False

    def goodbye_follows(self) -> None:
        """The goodbye is said next. What does not come from the backend (acknowledgements, credit) may go with it."""

    def transmit_last(self, data: bytes | memoryview) -> None:
        """As ``transmit``, if a shutdown follows at once. A layer may keep the bytes and send them with its goodbye."""
        self.transmit(data)

    @property
    def acknowledged(self) -> bool:
        """Whether :meth:`delivered` would have nothing to wait for now."""
        return self.unsent == 0 and not self.dead

    async def delivered(self, deadline: Deadline) -> bool:
        """Wait until all output is with the peer, as far as this layer can know. Return whether it is.

        A byte stream waits until the kernel has it, QUIC until it is acknowledged.
        """
        if self.acknowledged:
            return True
        with deadline.scope():
            try:
                await self.flush()
            except TransportError:
                return False
        return self.unsent == 0


class ByteStream(Carrier[memoryview]):
    """A filter that carries bytes in order: TCP, TLS, a tunnel.

    ``receive_nowait`` returns a view of a buffer that all streams of a pool share. It is valid until the next call of
    ``receive_nowait`` on any of them. So use it, or copy it, before you await. An empty view is the end of the stream.
    """


class Run(NamedTuple):
    """Datagrams that arrived together.

    :ivar data: their bytes, one datagram behind the other.
    :ivar ends: where each ends.
    :ivar mark: the ECN bits that each has.
    """

    data: bytes
    ends: Sequence[int]
    mark: int = 0

    @classmethod
    def of_one(cls, datagram: bytes, mark: int = 0) -> Run:
        return cls(datagram, (len(datagram),), mark)

    def datagrams(self) -> list[bytes]:
        """Each by itself."""
        return [self.data[start:end] for start, end in zip([0, *self.ends[:-1]], self.ends, strict=True)]


class Datagrams(Sends):
    """A filter that carries datagrams to and from one address: UDP, or a relay of it through a proxy. QUIC sits on it.

    :ivar address: the peer's address.
    :ivar ecn: the ECN bits that are sent.
    :ivar largest: the largest datagram that it carries, as far as it knows, in bytes.
    :ivar obstacle: the last error that was treated as the loss of a datagram, such as "no route to host".
    """

    address: SocketAddress
    ecn: int = 0
    largest: int = 65527  # of UDP, without jumbograms
    obstacle: OSError | None = None

    @abstractmethod
    def receive_nowait(self) -> list[Run] | None:
        """Return a batch of the datagrams that have arrived; ``None`` if there are none.

        After an empty batch there may be more.

        :raises TransportError: when the peer is gone.
        """

    @abstractmethod
    def listen(self, host: TaskHost, function: Callable[[], None] | None) -> bool:
        """See :meth:`Carrier.listen`."""

    @abstractmethod
    async def wait_readable(self) -> None:
        """Wait for datagrams, or for an error to read.

        :raises TransportError: when the layer is closed meanwhile.
        """

    @abstractmethod
    def send(self, datagrams: Sequence[bytes]) -> None:
        """Send these now, as far as possible, and keep the rest for :meth:`flush`. Never raises."""

    @property
    def lost(self) -> int:
        """How many datagrams the system had no route for. They count as lost."""
        return 0

    @property
    def failed(self) -> bool:
        """Whether a send has found that the peer is gone. The next read raises that."""
        return False

    def send_marked(self, ecn: int) -> bool:
        """Send with these ECN bits from now on. Return whether marks can be both sent and read here."""
        return False

    def rebind(self, local_address: str | None = None) -> None:
        """Go on from a new local port or address (RFC 9000 §9).

        :raises ConnectFailed: when that fails. Nothing has changed then.
        """
        raise ConnectFailed(f"{self.name} cannot move to another address", phase="quic", by="us")

    def sibling(self, address: SocketAddress) -> Datagrams:
        """Make another one like it, connected to another address.

        :raises ConnectFailed: when that fails.
        """
        raise ConnectFailed(f"{self.name} reaches one address only", phase="quic", by="us")

    def swap(self, other: Datagrams) -> None:
        """Exchange socket and peer with one that :meth:`sibling` has made."""
        raise NotImplementedError


class OverAnother(Sends):
    """A filter without buffers of its own: its unsent bytes are in the one below it."""

    _lower: Carrier[object] | Datagrams

    @property
    def unsent(self) -> int:
        return self._lower.unsent

    async def flush(self) -> None:
        await self._lower.flush()

    def catch_up(self) -> None:
        self._lower.catch_up()


class ReceiveBuffer:
    """The one large buffer that all sockets of a pool receive into. (Only one of them runs at a time.)"""

    __slots__ = ("plain", "wire")

    def __init__(self, size: int = 512 * 1024) -> None:
        self.wire = _memory(size)
        #: For TLS: the decrypted bytes. It is larger by one record, so a full read of ciphertext always fits.
        self.plain = _memory(size + 16 * 1024)


def _memory(size: int) -> memoryview:
    """Pages that the system provides when they are first used. (A pool for HTTP/3 uses none, a small response one.)"""
    return memoryview(mmap(-1, size, access=ACCESS_COPY))  # a forked process has its own
