"""What a filter is: one layer of bytes below HTTP, which connects, carries, says goodbye and ends.

A filter knows the one below it and nothing above. Reading and writing are synchronous: ``receive_nowait`` takes what is
there, ``write`` hands over what it can and keeps the rest. Only connecting, saying goodbye, and waiting for the
socket to be ready are coroutines. So whole batches pass through all layers without a task switch, and no caller's
cancellation can fall between two halves of a write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from allswell._deadline import Deadline
from allswell._errors import ConnectFailed, TransportError
from allswell._report import LayerEnd, Outcome
from allswell._tasks import TaskHost

#: Reads, at most, of what has come before an end that waits for nothing. Unread, it would make a RST of our end; from a
#: peer that never stops, it would never be over.
LAST_READS = 16

#: Of IPv4 and IPv6, as :mod:`socket` has them. A relay's peer may have a name.
SocketAddress = tuple[str, int] | tuple[str, int, int, int]

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
        """Say this layer's goodbye now, as far as that goes, and wait for nothing. Idempotent; never raises.

        The layer goes on hearing: :meth:`shutdown` then waits for the answer only.
        """
        return  # of a layer that has no goodbye of its own

    @abstractmethod
    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        """Say goodbye and wait for the answer until the deadline, using the layer below, never ending it.

        With the deadline passed it still says what it can say at once, and waits for nothing. Never raises, save
        cancellation.
        """

    @abstractmethod
    def abort(self, *, reset: bool = True) -> LayerEnd:
        """End this layer now, without a word that the peer could take for a completed transfer. Idempotent.

        After :meth:`say_goodbye` it is the end of the wait for the answer: what was said stays said.

        :param reset: TCP ends with RST; without, with FIN: last words (an HTTP/2 GOAWAY with its error code) may be
            on their way, and RST would overtake them.
        """

    @abstractmethod
    def catch_up(self) -> None:
        """Do what the event loop has not come to: read what a tunnel's connection has received, send what is unsent.

        Called before something fails for want of time: the program may have held the event loop for longer than that.
        Never raises.
        """

    def so_far(self) -> LayerEnd:
        """Its end, as far as that has come: what was said and heard until now."""
        return LayerEnd(self.name, "", "", Outcome.CLEAN)  # of a layer that has no goodbye of its own

    def extra(self, name: str) -> Any:
        """A fact about this layer (``"ssl_object"``, ``"socket"``, ``"server_addr"``, …), or ``None``.

        (Of any type: what httpx2 documents as ``get_extra_info`` gives it to the caller.)
        """
        return None


class Carrier(Filter, Generic[Input_co]):
    """A filter that a backend can sit on: a :class:`ByteStream` gives bytes, a multiplexer (QUIC) gives events."""

    #: After its end: whether it was cut, i.e. ended without the layer's goodbye (TLS without close_notify).
    truncated: bool = False

    @property
    def drained(self) -> bool:
        """Whether ``receive_nowait`` has just returned all that had arrived, so that to ask again is not worth a call.

        ``False`` where that is not known.
        """
        return False

    @abstractmethod
    def receive_nowait(self) -> Input_co | None:
        """What has arrived, or ``None`` when nothing has. The caller must loop: there may be more.

        :raises TransportError: when the layer is gone (a reset).
        """

    def quiet(self) -> bool:
        """Whether nothing has arrived, asked of the socket now, at less cost than ``receive_nowait``.

        ``False`` where that cannot be told: then ``receive_nowait`` tells.

        :raises TransportError: when the layer is gone (a reset).
        """
        return False

    @abstractmethod
    async def wait_readable(self) -> None:
        """Wait until ``receive_nowait`` is worth a call. Spurious returns are allowed.

        :raises TransportError: when the layer is gone.
        """

    def listen(self, function: Callable[[], None] | None) -> bool:
        """Have a function called whenever something has arrived, until told to stop by ``None``.

        What is there already is not told of: a listener looks first. Whether this can be had here;
        otherwise ask :meth:`wait_readable`. Never both at a time.
        """
        return False

    @abstractmethod
    def transmit(self, data: bytes) -> None:
        """Send the backend's output now, as far as it goes; keep the rest for :meth:`flush`.

        A multiplexer has its output queued already and is given ``b""``: it builds and sends its datagrams.
        Never raises: a peer that is gone is found by the next read, which is also where its last words are.
        """

    @property
    def dead(self) -> bool:
        """Whether a write has failed, so nothing more can be sent. (What the peer said last may still be readable.)"""
        return False

    @property
    @abstractmethod
    def unsent(self) -> int:
        """Bytes that :meth:`transmit` could not hand over yet."""

    @abstractmethod
    async def flush(self) -> None:
        """Hand over what is unsent, waiting as long as it takes. Only one task may do this at a time.

        :raises TransportError: when the layer is gone.
        """

    def transmit_last(self, data: bytes) -> None:
        """As ``transmit``, for what a shutdown follows at once: a layer may keep it, to say it with its own goodbye."""
        self.transmit(data)

    @property
    def acknowledged(self) -> bool:
        """What :meth:`delivered` waits for, at this instant."""
        return self.unsent == 0 and not self.dead

    async def delivered(self, deadline: Deadline) -> bool:
        """Wait until what was transmitted is with the peer, as far as this layer can know; whether it is.

        For a byte stream: with the kernel. For QUIC: acknowledged.
        """
        with deadline.scope():
            try:
                await self.flush()
            except TransportError:
                return False
        return self.unsent == 0


class ByteStream(Carrier[memoryview]):
    """A filter that carries bytes in order: TCP, TLS, a tunnel.

    ``receive_nowait`` returns a view of a buffer that is shared by all streams of a pool: it holds until the next
    call of ``receive_nowait`` on any of them, so use it or copy it before you await. An empty view is the end of
    the stream.
    """


class Run(NamedTuple):
    """Datagrams that arrived together.

    :ivar data: of all of them, one behind the other.
    :ivar ends: where each ends.
    :ivar mark: the ECN bits of each.
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


class Datagrams(Filter):
    """A filter that carries datagrams to and from one address: UDP, or a relay of it through a proxy. QUIC sits on it.

    :ivar address: the peer's.
    :ivar ecn: the ECN bits that are sent.
    :ivar largest: bytes of the largest datagram that it carries, for all it knows.
    :ivar obstacle: the last error that was taken for the loss of a datagram, such as "no route to host".
    """

    address: SocketAddress
    ecn: int = 0
    largest: int = 65527  # of UDP, without jumbograms
    obstacle: OSError | None = None

    @abstractmethod
    def receive_nowait(self) -> list[Run] | None:
        """The datagrams that have arrived, a batch of them at most; ``None`` when there are none.

        (An empty batch was something else, and there may be more.)

        :raises TransportError: when there is no peer any more.
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
        """Send these now, as far as it goes; keep the rest for :meth:`flush`. Never raises."""

    @property
    def lost(self) -> int:
        """Datagrams that the system knew no way for, and that count as lost on it."""
        return 0

    @property
    def failed(self) -> bool:
        """Whether a send has found the peer gone: the next read raises it."""
        return False

    @property
    @abstractmethod
    def unsent(self) -> int:
        """Bytes that :meth:`send` could not hand over yet."""

    @abstractmethod
    async def flush(self) -> None:
        """Hand over what is unsent, waiting as long as it takes.

        :raises TransportError: when the layer is closed meanwhile.
        """

    def send_marked(self, ecn: int) -> bool:
        """Send with these ECN bits from now on; whether that can be had, and marks be told."""
        return False

    def rebind(self, local_address: str | None = None) -> None:
        """Go on from a new local port, or address (RFC 9000 §9).

        :raises ConnectFailed: when that cannot be had; all stays as it was.
        """
        raise ConnectFailed(f"{self.name} cannot move to another address", phase="quic", by="us")

    def sibling(self, address: SocketAddress) -> Datagrams:
        """Another one like it, connected to another address.

        :raises ConnectFailed: when that cannot be had.
        """
        raise ConnectFailed(f"{self.name} reaches one address only", phase="quic", by="us")

    def swap(self, other: Datagrams) -> None:
        """Take the socket and the peer of what :meth:`sibling` gave, and give it ours."""
        raise NotImplementedError


class OverAnother(Filter):
    """A filter without buffers of its own: what it has yet to send is with the one below it."""

    _lower: Carrier[object] | Datagrams

    @property
    def unsent(self) -> int:
        """Bytes that could not be handed over yet."""
        return self._lower.unsent

    async def flush(self) -> None:
        """Hand over what is unsent, waiting as long as it takes.

        :raises TransportError: when the layer is gone.
        """
        await self._lower.flush()

    def catch_up(self) -> None:
        self._lower.catch_up()


class ReceiveBuffer:
    """The one large buffer that all sockets of a pool receive into (an event loop runs one of them at a time)."""

    __slots__ = ("plain", "wire")

    def __init__(self, size: int = 256 * 1024) -> None:
        self.wire = memoryview(bytearray(size))
        #: For TLS: what was decrypted. Larger by one record, so that a full read of ciphertext always fits.
        self.plain = memoryview(bytearray(size + 16 * 1024))
