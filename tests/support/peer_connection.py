"""One accepted connection of a scripted peer: it speaks as it is told, and witnesses how the client ends.

How it knows what it says it saw. The client's last words reach us as: TLS's close_notify (the record layer says so),
TCP's FIN (``recv`` gives ``b""``) and TCP's RST (an error, given once, to whoever asks next). The obvious way, to read
until ``b""`` and close, misses the RST that comes *after* the FIN: a client that closed its socket outright answers our
own goodbye so. Hence :meth:`PeerConnection.finish` says ours after the client's FIN and then asks the kernel whether
it was acknowledged (TCP_INFO: state CLOSE, and no error) or reset.

A FIN that was received before a RST, but not read before it, is known by the kernel's error: EPIPE in CLOSE_WAIT,
ECONNRESET in every other state (Linux, ``tcp_reset``).
"""

from __future__ import annotations

import errno
import fcntl
import socket
import ssl
import struct
import termios
import threading
import time
from dataclasses import dataclass
from typing import NoReturn

_CHUNK = 256 * 1024
_TCP_CLOSE = 7


class ClientGoneError(Exception):
    """The client ended while the script wanted to say more. A script need not catch it: it just ends there."""


class PeerStoppedError(Exception):
    """The test is over while the script still waits. Never caught by a script."""


@dataclass
class Seen:
    """Something the peer saw.

    :ivar what: ``"data"``, ``"close_notify"``, ``"FIN"``, ``"RST"``; or what no good client does: ``"alert"`` (TLS gave
        up, see ``detail``) and ``"trailing"`` (bytes on TCP after close_notify).
    :ivar at: when it was seen first, in seconds of :func:`time.monotonic`.
    :ivar size: bytes of application data, for ``"data"`` (data that arrives in a row is one entry).
    """

    what: str
    at: float
    size: int = 0
    detail: str = ""


class PeerConnection:
    """What a script is given. All calls block, at most ``patience`` seconds, then raise :class:`TimeoutError`.

    :ivar events: everything seen, in order. :attr:`saw` has the endings only.
    :ivar requests: every request that :meth:`read_request` read, whole.
    :ivar answers_close_notify: whether ours is sent when the client's arrives (set it to ``False`` to be rude).
    :ivar handshake_error: why TLS was not agreed on, if it was not (then the script never ran).
    """

    def __init__(
        self, raw: socket.socket, index: int, tls: ssl.SSLContext | None, released: threading.Event, patience: float
    ) -> None:
        self.index = index
        self.events: list[Seen] = []
        self.requests: list[bytes] = []
        self.answers_close_notify = True
        self.handshake_error: ssl.SSLError | None = None
        self.ended = threading.Event()
        self.raw = raw
        raw.settimeout(patience)
        self._patience = patience
        self._released = released
        self._stop = threading.Event()
        self._closed = False
        self._at_end = False  # of TCP
        self._tls_at_end = False
        self._said_close_notify = False
        self._said_fin = False
        self._unread = bytearray()
        self._context = tls
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._sending = threading.RLock()
        self._at_tls = threading.Lock()  # an SSLObject is not for two threads at once
        self._tls: ssl.SSLObject | None = None  # once it is agreed on; until then recv and send are TCP's

    # --- What was seen.

    @property
    def saw(self) -> list[str]:
        """The client's endings in order, e.g. ``["close_notify", "FIN"]``. Complete once the connection ended."""
        return [event.what for event in self.events if event.what != "data"]

    @property
    def received(self) -> int:
        """Bytes of application data received."""
        return sum(event.size for event in self.events)

    @property
    def selected_alpn(self) -> str | None:
        """What ALPN agreed on."""
        return self._tls.selected_alpn_protocol() if self._tls else None

    def when(self, what: str) -> float:
        """The instant at which it was first seen; :class:`LookupError` if it never was."""
        for event in self.events:
            if event.what == what:
                return event.at
        raise LookupError(f"connection {self.index} never saw {what}, but {self.saw}")

    def _record(self, what: str, size: int = 0, detail: str = "") -> None:
        if size and self.events and self.events[-1].what == what:
            self.events[-1].size += size
        else:
            self.events.append(Seen(what, time.monotonic(), size, detail))

    # --- Reading.

    def recv(self) -> bytes:
        """The next application data, ``b""`` when no more will come: close_notify, FIN or RST (see :attr:`saw`)."""
        if self._unread:
            data = bytes(self._unread)
            self._unread.clear()
            return data
        return self._recv_plain() if self._tls is None else self._recv_tls(self._tls)

    def _recv_plain(self) -> bytes:
        data = self._recv_raw()
        if data:
            self._record("data", len(data))
        return data

    def _recv_tls(self, tls: ssl.SSLObject) -> bytes:
        while not self._tls_at_end:
            try:
                data = self._decrypt(tls)
            except ssl.SSLWantReadError:
                self._flush()  # a key update may have to be answered
                wire = self._recv_raw()
                self._tls_at_end = not wire
                self._incoming.write(wire)
            else:
                if data:
                    return data
        return b""

    def _decrypt(self, tls: ssl.SSLObject) -> bytes:
        """What TLS has in hand, ``b""`` at its end, which is recorded.

        :raises ssl.SSLWantReadError: it has nothing.
        """
        detail, what = "", "close_notify"
        try:
            with self._at_tls:
                data = tls.read(_CHUNK)
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLZeroReturnError:  # what b"" is called once our own close_notify is out
            data = b""
        except ssl.SSLError as error:
            data, what, detail = b"", "alert", error.reason or str(error)
        if data:
            self._record("data", len(data))
        else:
            self._tls_at_end = True
            self._record(what, detail=detail)
        return data

    def _recv_raw(self) -> bytes:
        """Bytes of TCP, ``b""`` at its end, which is recorded."""
        if self._at_end or self._closed:
            return b""
        try:
            data = self.raw.recv(_CHUNK)
        except ConnectionResetError:
            self._record("RST")
            data = b""
        else:
            if not data:
                if self.stopping:
                    raise PeerStoppedError
                self._record("FIN")
        self._at_end = not data
        return data

    @property
    def pending(self) -> bool:
        """Whether :meth:`recv` has something without asking the socket."""
        return bool(self._unread or self._incoming.pending or (self._tls is not None and self._tls.pending()))

    def read_head(self) -> bytes:
        """A request's head with its empty line, or ``b""`` when the client ended before one was complete."""
        return self._read_past(b"\r\n\r\n")

    def read_body(self, head: bytes) -> bytes:
        """The body that the head announces (Content-Length or chunked), as it stood on the wire."""
        lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
        fields = {name.strip().lower(): value.strip() for name, _, value in lines}
        if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
            body = bytearray()
            while size_line := self._read_past(b"\r\n"):
                body += size_line
                if int(size_line.split(b";")[0], 16) == 0:
                    while (line := self._read_past(b"\r\n")) not in (b"\r\n", b""):
                        body += line
                    return bytes(body + line)
                body += self.read_exactly(int(size_line.split(b";")[0], 16) + 2)
            return bytes(body)
        return self.read_exactly(int(fields.get(b"content-length", b"0")))

    def read_request(self) -> bytes:
        """One whole HTTP/1.1 request, head and body, or ``b""`` when the client ended instead."""
        head = self.read_head()
        if not head:
            return b""
        request = head + self.read_body(head)
        self.requests.append(request)
        return request

    def _read_past(self, mark: bytes) -> bytes:
        data = bytearray()
        while mark not in data:
            more = self.recv()
            if not more:
                return b""
            data += more
        end = data.index(mark) + len(mark)
        self._unread += data[end:]
        return bytes(data[:end])

    def read_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = self.recv()
            if not more:
                break
            data += more
        self._unread += data[size:]
        return bytes(data[:size])

    # --- Speaking.

    def send(self, data: bytes | memoryview, *, pieces: int | None = None) -> None:
        """Application data; with ``pieces`` in writes (and TLS records) of that many bytes each.

        :raises ClientGoneError: the client reset the connection.
        """
        view = memoryview(data)
        step = pieces or len(view) or 1
        for start in range(0, len(view), step):
            with self._sending:  # a test may send while the script's thread reads: records must not change places
                self.send_raw(self.encrypt(view[start : start + step]))

    def encrypt(self, data: bytes | memoryview) -> bytes | memoryview:
        """The bytes that :meth:`send` would put on TCP: the same for plain TCP, whole records for TLS."""
        if self._tls is None:
            return data
        view = memoryview(data)
        with self._at_tls:
            while view:
                view = view[self._tls.write(view) :]
            return self._outgoing.read()

    def send_raw(self, data: bytes | memoryview, *, pieces: int | None = None) -> None:
        """Bytes on TCP as they are, below TLS; with ``pieces`` in segments of that many bytes each.

        :raises ClientGoneError: the client reset the connection.
        """
        view = memoryview(data)
        step = pieces or len(view) or 1
        try:
            for start in range(0, len(view), step):
                self.raw.sendall(view[start : start + step])
        except OSError as error:
            self._gone(error)

    def _flush(self) -> None:
        if self._outgoing.pending:
            with self._sending:
                self.send_raw(self._outgoing.read())

    def _gone(self, error: OSError) -> NoReturn:
        """Sending failed: read the client's last words, which came before its RST, then say that it is gone."""
        if self.stopping:
            raise PeerStoppedError from error
        if error.errno not in (errno.ECONNRESET, errno.EPIPE) or self._said_fin:
            raise error
        if not self._at_end:
            self._read_to_end()
            # The error was given to us, so the end read as b"": that was a FIN only if there had been one.
            if error.errno == errno.ECONNRESET:
                self.events.pop()
        if "RST" not in self.saw:
            self._record("RST")
        raise ClientGoneError from error

    def _read_to_end(self) -> None:
        """Read and discard to TCP's end, past TLS's; answer nothing."""
        while self.recv():
            pass
        while wire := self._recv_raw():
            self._record("trailing", len(wire))

    # --- Ending.

    def handshake(self) -> None:
        """TLS's handshake. Done before the script unless the peer was told ``handshake=False``."""
        if self._context is None:
            return
        tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                wire = self._recv_raw()
                if not wire:
                    raise ClientGoneError from None
                self._incoming.write(wire)
            except ssl.SSLError as error:
                self.handshake_error = error
                self._record("alert", detail=error.reason or str(error))
                self._flush()
                raise ClientGoneError from error
            else:
                self._tls = tls
                self._flush()  # with TLS 1.3's session tickets
                break

    def send_close_notify(self) -> None:
        """TLS's goodbye, once; nothing for plain TCP. What the client sent before is still to be read."""
        if self._tls is None or self._said_close_notify:
            return
        self._said_close_notify = True
        # OpenSSL's shutdown throws unread application data away: take it first.
        try:
            while not self._tls_at_end:
                self._unread += self._decrypt(self._tls)
        except ssl.SSLWantReadError:
            pass
        try:
            with self._at_tls:
                self._tls.unwrap()
        except ssl.SSLError:
            pass  # ours is written; that the client's is not here yet is for recv to find out
        self._flush()

    def fin(self) -> None:
        """TCP's FIN (``shutdown(SHUT_WR)``), without close_notify. We still read."""
        if self._closed or self._said_fin:
            return
        self._said_fin = True
        try:
            self.raw.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # the client's RST is how we get here then, and it is recorded by reads
                raise

    def close(self) -> None:
        """Close the socket as a plain server does: FIN, or RST if anything lies unread. Nothing is seen after it."""
        self._closed = True
        self.raw.close()

    def await_acknowledged(self) -> None:
        """Wait until the client's kernel has all that was sent. (A RST throws away what ours still holds back.)"""
        while struct.unpack("i", fcntl.ioctl(self.raw, termios.TIOCOUTQ, bytes(4)))[0]:
            self.pause(0.001)  # nothing wakes us for an acknowledgement: look again in a moment

    def reset(self) -> None:
        """TCP's RST, at once."""
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def read_until_end(self) -> None:
        """Read and discard until the client's FIN or RST; answer its close_notify if so told. Says no FIN itself."""
        while self.recv():
            pass
        if self._tls_at_end and not self._at_end and self.answers_close_notify:
            self.send_close_notify()
        self._read_to_end()

    def finish(self) -> None:
        """The polite end of every script that left the connection open: hear the client out, say ours, then look."""
        if not self._closed:
            try:
                self.read_until_end()
                if "RST" not in self.saw:
                    if self.answers_close_notify:
                        self.send_close_notify()
                    self.fin()
                    self._await_last_ack()
            except ClientGoneError:
                pass  # its RST is recorded: nobody is there to be polite to
            self.close()

    def _await_last_ack(self) -> None:
        """Both sides said FIN: has the client's kernel acknowledged ours, or reset the connection?"""
        if self.raw.family == socket.AF_UNIX:
            return
        deadline = time.monotonic() + self._patience
        while self.raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE:
            # Nothing wakes us for an acknowledgement: look again in a moment.
            self.pause(0.001)
            if time.monotonic() > deadline:
                raise TimeoutError(f"connection {self.index}: our FIN was never acknowledged")
        if self.raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._record("RST")

    # --- Waiting.

    def stall(self) -> None:
        """Say and read nothing until the test calls :meth:`ScriptedPeer.release` (at the latest when it leaves)."""
        if self._at_end:
            self.ended.set()
        if not self._released.wait(self._patience):
            raise TimeoutError(f"connection {self.index}: stalled for {self._patience} s, never released")
        if self.stopping:
            raise PeerStoppedError

    def pause(self, seconds: float) -> None:
        """A server that takes its time; ends early, with the script, when the test leaves."""
        if self._stop.wait(seconds):
            raise PeerStoppedError

    @property
    def stopping(self) -> bool:
        """Whether the test is over."""
        return self._stop.is_set()

    def stop(self) -> None:
        """From the test's thread: whatever the script is waiting for ends now."""
        self._stop.set()
        try:
            self.raw.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is closed, or reset, already: then nothing is waiting for it either
