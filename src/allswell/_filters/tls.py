"""The TLS filter, over any byte stream: one close_notify each way, and never one for an aborted transfer.

Theory of operation. OpenSSL works on two memory buffers: ciphertext that came goes into one, and ciphertext to send
comes out of the other. So a write never blocks here. It is encrypted whole, at once, and the layer below keeps what the
socket does not take. (If OpenSSL writes to the socket itself, a write that did not fit must be repeated with the very
same bytes. curl lost connections by repeating it with another request's.)

A TLS 1.2 server may renegotiate (RFC 5246 §7.4.1.1), most often to ask for a client certificate when it has seen the
request's path. OpenSSL does that while it reads, and takes nothing to encrypt until it is over. What is written in the
meantime is held here, in order. HTTP/2 forbids renegotiation (RFC 9113 §9.2.1).

Ending (RFC 8446 §6.1, RFC 5246 §7.2.1): each side says close_notify before it ends its stream. ``unwrap()`` sends ours.
OpenSSL can still read after that. The peer's close_notify reads as 0 bytes before ours was written, and raises
``SSLZeroReturnError`` afterwards. A stream that ends without the peer's close_notify is ``truncated``. Only HTTP above
knows whether that matters.

Many peers never answer a close_notify. How long to wait for the answer is learnt (`goodbye_timeout.py`).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

import anyio

from allswell._clock import monotonic
from allswell._deadline import Deadline
from allswell._errors import ConnectFailed, TransportError, shown
from allswell._fields import name_for_tls
from allswell._filters.certificates import PeerCertificate, strict
from allswell._filters.goodbye_timeout import GoodbyeTimeout
from allswell._filters.interface import ByteStream, ReceiveBuffer
from allswell._pins import PinCheck
from allswell._report import LayerEnd, Outcome

_RECORD = 16 * 1024
#: RFC 5246 §6.2.3: the most bytes that a record takes on the wire. (RFC 8446 §5.2 allows less.)
_WHOLE = _RECORD + 2048 + 5
#: How many bytes OpenSSL's memory buffer is given at once. It never shrinks, so an idle connection would keep one as
#: large as the longest read. (The other one is given all at once: uploads in pieces take 7 to 10 % more.)
_PIECE = 64 * 1024
#: How many records are decrypted in one go: as many of the size of a network packet as fill the buffer.
_RECORDS = 256
#: How many bytes of records without content are taken in one go. With more, a peer would keep others from their turn.
_BARREN = 4 * _RECORD
#: RFC 5246 §6.2.1: the type of a handshake message's record.
_HANDSHAKE = 22
#: A connection takes its ALPN protocols from its context, which clients in other threads may share.
_ALPN = Lock()


class TlsFilter(ByteStream):
    """A TLS client connection.

    :param lower: the stream that carries the records. It is connected first, and the stack ends it.
    :param peer: what errors call the other end.
    :param server_name: for SNI and for the certificate's check; a host name or an IP address.
    :param alpn: protocols to offer, best first.
    :param pinned: checks the server's certificate, in addition to the context.
    :ivar context: as given.
    """

    name = "tls"

    def __init__(
        self,
        lower: ByteStream,
        *,
        peer: str,
        context: ssl.SSLContext,
        server_name: str,
        alpn: Sequence[str],
        buffer: ReceiveBuffer,
        goodbye_timeout: GoodbyeTimeout | None = None,
        pinned: PinCheck | None = None,
    ) -> None:
        self._lower = lower
        self._peer = peer
        self.context = context
        self._server_name = server_name
        self._alpn = list(alpn)
        self._pinned = pinned
        self._buffer = buffer.plain
        self._more = True  # to decrypt, besides what has just come
        self._goodbye_timeout = goodbye_timeout or GoodbyeTimeout()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object: ssl.SSLObject | None = None
        self._fresh = True  # no content has come
        self._strict = False  # whether the certificate was verified, with the name
        self._ready = False
        self._forbids_renegotiation = False
        self._held: list[bytes | memoryview] = []  # to be encrypted, once a renegotiation is over
        self._held_size = 0
        self._let_go: anyio.Event | None = None  # if somebody waits for that
        self._said = ""
        self._heard = ""
        self._peer_first = False
        self._failed = False
        self._broken: TransportError | None = None
        self._end: LayerEnd | None = None

    @property
    def alpn_protocol(self) -> str | None:
        """What the peer chose by ALPN, after :meth:`connect`."""
        return self._object.selected_alpn_protocol() if self._object is not None else None

    async def connect(self) -> None:
        try:
            name = name_for_tls(self._server_name)
            with _ALPN:
                if self._alpn:
                    self.context.set_alpn_protocols(self._alpn)
                self._object = self.context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
                self._strict = strict(self.context)
            while True:
                try:
                    self._object.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._push()
                    await self._feed()
            if self._pinned is not None:  # before we send Finished, and with it (in TLS 1.3) our certificate
                self._pinned(self._object.getpeercert(binary_form=True) or b"")
            self._push()
        except ssl.CertificateError as error:
            self._push()  # the alert with the reason
            told = shown(getattr(error, "verify_message", "") or str(error))
            message = f"the certificate of {self._peer} is not trusted: {told}"
            raise ConnectFailed(message, phase="tls", by="peer") from error
        except ssl.SSLError as error:
            self._push()
            raise ConnectFailed(f"TLS with {self._peer} failed: {_words(error)}", phase="tls", by="peer") from error
        except TransportError as error:
            raise ConnectFailed(f"TLS with {self._peer} failed: {error}", phase="tls", by="peer") from error
        except ValueError as error:
            message = f"{self._server_name!r} cannot be the server's name in TLS: {error}"
            raise ConnectFailed(message, phase="tls", by="us") from error
        self._ready = True
        self._forbids_renegotiation = self.alpn_protocol == "h2" and self._object.version() == "TLSv1.2"

    async def _feed(self) -> None:
        while (data := self._lower.receive_nowait()) is None:
            await self._lower.wait_readable()
        if not data:
            raise TransportError(f"{self._peer} ended the connection during the handshake", operation="read", by="peer")
        self._incoming.write(data)

    # Reading

    def receive_nowait(self) -> memoryview | None:
        if self._heard:
            return self._buffer[:0]
        if self._broken is not None:
            raise self._broken  # (after the peer's fatal alert OpenSSL would report a close_notify)
        total = taken = 0
        while True:
            if self._more or self._incoming.pending:
                total = self._decrypt(total)
                # Ask the layer below only if there is nothing to return.
                if total or self._heard:
                    return self._buffer[:total]
            if taken > _BARREN:  # session tickets, of which OpenSSL takes any number
                raise self._break("it sent too many records without content")
            data = self._lower.receive_nowait()
            if data is None:
                return None
            if not data:
                self._heard = "EOF"
                return data
            taken += len(data)
            if len(data) <= _PIECE or data.obj is self._buffer.obj:  # (below is TLS, too, which uses the same buffer)
                self._incoming.write(data)
                continue
            total = self._decrypt(total, data)
            if total or self._heard:
                return self._buffer[:total]

    @property
    def truncated(self) -> bool:
        return self._heard == "EOF"

    @property
    def drained(self) -> bool:
        # Not if an end was heard behind the data: only another call reports it. (An incomplete record does not matter.)
        return not (self._more or self._heard or self._broken) and self._lower.drained

    def quiet(self) -> bool:
        # (The beginning of an incomplete record says nothing yet.)
        return not self._heard and self._broken is None and not self._more and self._lower.quiet()

    def _decrypt(self, total: int, arrived: memoryview | None = None) -> int:
        """Decrypt into the buffer, from ``total`` on, until the buffer is full or the input is used up.

        :param arrived: input that OpenSSL was not given yet.
        """
        assert self._object is not None
        buffer, incoming = self._buffer, self._incoming
        read: Any = self._object.read  # (typeshed does not know that any buffer will do, and that the size is returned)
        room = len(buffer) - _RECORD
        records = _RECORDS
        try:
            while total <= room and records:  # (each read takes a whole record, which fits)
                pending = incoming.pending
                if arrived is not None and pending < _WHOLE:
                    incoming.write(arrived[:_PIECE])
                    arrived = arrived[_PIECE:] or None
                elif not pending:
                    break
                records -= 1
                size = read(_RECORD, buffer[total:])
                if size == 0:
                    self._heard = "close_notify"
                    break
                total += size
        except ssl.SSLWantReadError:
            pass  # the rest of a record is still to come
        except ssl.SSLZeroReturnError:
            self._heard = "close_notify"
        except ssl.SSLError as error:
            self._push()
            broken = self._break(_words(error))
            if not total:
                raise broken from error
        if arrived is not None:
            incoming.write(arrived)
        self._more = total > room or not records or arrived is not None
        if self._fresh and total and not self._said:
            self._fresh = False
            # With a session ticket, OpenSSL 3.0 makes a buffer for an answer, and keeps it until the next write: 17 KB.
            with suppress(ssl.SSLError):
                self._object.write(b"")
        if self._outgoing.pending:
            # Key updates, alerts and handshakes are answers that OpenSSL writes while it reads.
            answer = self._outgoing.read()
            if self._forbids_renegotiation and answer[0] == _HANDSHAKE:
                broken = self._break("it asked for renegotiation, which HTTP/2 forbids (RFC 9113 §9.2.1)")
                if not total:
                    raise broken
                return total
            self._lower.transmit(answer)
        if self._held:
            self._encrypt_held()
        return total

    def _break(self, words: str) -> TransportError:
        """The peer broke TLS. Return the error, which all further reads raise."""
        self._fail()
        self._broken = TransportError(f"{self._peer} broke TLS: {words}", operation="read", by="peer")
        return self._broken

    async def wait_readable(self) -> None:
        if not self._incoming.pending:
            await self._lower.wait_readable()

    def listen(self, function: Callable[[], None] | None) -> bool:
        return self._lower.listen(function)

    # Writing

    def transmit(self, data: bytes | memoryview) -> None:
        if data:
            self.transmit_last(data)
            self._push()

    def transmit_last(self, data: bytes | memoryview) -> None:
        # It goes together with close_notify, in one segment. nghttpd and HAProxy close as soon as they hear GOAWAY, and
        # would answer a later segment by RST.
        if not data or self._said or self._failed or self._object is None:
            return
        if self._held or not self._encrypt(data):
            self._held.append(data)
            self._held_size += len(data)

    def _encrypt(self, data: bytes | memoryview) -> bool:
        """Encrypt it. Return ``False`` if OpenSSL takes nothing now, because a renegotiation is under way."""
        assert self._object is not None
        try:
            self._object.write(data)
        except ssl.SSLWantReadError:
            return False  # OpenSSL has taken nothing of it
        except ssl.SSLError:
            self._fail()  # the next read raises the cause
        return True

    def _encrypt_held(self) -> None:
        while self._held and not self._failed and self._encrypt(self._held[0]):
            if self._held:
                self._held_size -= len(self._held.pop(0))
        self._push()
        self._let_all_go()

    def _fail(self) -> None:
        """OpenSSL takes nothing any more."""
        self._failed = True
        self._drop_held()

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_size = 0
        self._let_all_go()

    def _let_all_go(self) -> None:
        if self._let_go is not None and not self._held:
            self._let_go.set()
            self._let_go = None

    @property
    def dead(self) -> bool:
        return self._failed or self._lower.dead

    @property
    def unsent(self) -> int:
        return self._lower.unsent + self._held_size

    async def flush(self) -> None:
        await self._lower.flush()
        while self._held:  # until the reading side has been through the handshake
            self._let_go = anyio.Event()
            await self._let_go.wait()
            await self._lower.flush()

    def catch_up(self) -> None:
        self._lower.catch_up()

    def _push(self) -> None:
        if self._outgoing.pending:
            self._lower.transmit(self._outgoing.read())

    # Ending

    def say_goodbye(self) -> None:
        if not self._ready or self._failed or self._said:
            return
        assert self._object is not None
        self._drop_received()
        if self._failed:
            return
        self._peer_first = bool(self._heard)
        self._said = "close_notify"
        try:
            self._object.unwrap()
            self._heard = self._heard or "close_notify"
        except ssl.SSLError:
            # Ours is written. The peer's has not come (SSLWantReadError), or data are before it, which will be dropped.
            # (In the middle of a renegotiation OpenSSL writes none.)
            if not self._outgoing.pending:
                self._said = ""
        self._push()

    def _drop_received(self) -> None:
        """Decrypt and drop what has come. For ``unwrap()`` content is an error, so it would miss what is behind it."""
        assert self._object is not None
        with suppress(TransportError):  # the peer broke TLS, and `_failed` is set
            while not (self._heard or self._failed) and (self._incoming.pending or self._object.pending()):
                self._decrypt(0)

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        if self._end is not None:
            return self._end
        self.say_goodbye()
        if not self._said:
            return self.abort(reset=False)
        began = monotonic()
        try:
            patient = deadline.sooner(self._goodbye_timeout.seconds)
            if await self._lower.delivered(patient):
                self.receive_nowait()  # it is dropped, because our side has ended
                if not (self._heard or patient.passed()):
                    with patient.scope():
                        while not self._heard:
                            await self.wait_readable()
                            self.receive_nowait()
        except TransportError:
            self._failed = True  # a reset, or garbage, while we said goodbye
        waited = monotonic() - began
        if self._heard == "close_notify":
            self._goodbye_timeout.answered()
        elif not self._heard and not self._failed:
            self._goodbye_timeout.unanswered(waited)
        return self._ended(waited)

    def abort(self, *, reset: bool = True) -> LayerEnd:
        self._drop_held()
        return self._ended(0.0)

    def so_far(self) -> LayerEnd:
        return self._end or self._layer_end(0.0)

    def _ended(self, seconds: float) -> LayerEnd:
        self._end = self._end or self._layer_end(seconds)
        return self._end

    def _layer_end(self, seconds: float) -> LayerEnd:
        if not self._ready:
            outcome = Outcome.SKIPPED
        elif not self._said or self._failed:
            outcome = Outcome.ABORTED
        elif self._heard:
            outcome = Outcome.PEER_FIRST if self._peer_first else Outcome.CLEAN
        else:
            outcome = Outcome.TIMED_OUT
        return LayerEnd(self.name, self._said, self._heard, outcome, seconds)

    def extra(self, name: str) -> Any:
        if name == "certificate":
            return PeerCertificate.of_tls(self._object) if self._strict and self._object is not None else None
        return self._object if name == "ssl_object" else None


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
