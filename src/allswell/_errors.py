"""The errors of allswell, and how a peer's words are made safe to show.

A server chooses the text of its GOAWAY, its CONNECTION_CLOSE, its status line. That text may move a terminal's cursor,
begin a new line in a log, or be very long. So all of it passes through :func:`shown` before it is shown anywhere. The
base class of all errors calls it again, for the whole message.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Literal, Self

Party = Literal["us", "peer", "network"]
Reach = Literal["exchange", "connection"]
Phase = Literal["dns", "tcp", "tls", "proxy", "quic"]
Missing = Literal["response", "end"]
TimeoutPhase = Literal["connect", "read", "write", "pool", "total"]

#: The most characters that are shown of a peer's words, and of a whole message.
_WORDS, _MESSAGE = 200, 4000


def shown(said: bytes | str, limit: int = _WORDS) -> str:
    """A peer's words as one line of at most ``limit`` characters, none of which controls a terminal."""
    text = said if isinstance(said, str) else said[: 4 * limit].decode("utf-8", "replace")
    if len(text) > limit or not text.isprintable():
        text = printable(" ".join(text[: 4 * limit].split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """The text with each unprintable character replaced: control characters, and those that change the direction."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


class AllswellError(Exception):
    """The base class of all errors of allswell.

    :ivar by: who caused it: ``"us"`` (this client or its caller), ``"peer"`` or ``"network"``.
    :ivar reach: what it ended: one ``"exchange"``, or the whole ``"connection"``.
    """

    by: Party = "us"
    reach: Reach = "exchange"

    def __init__(self, message: str, *, by: Party | None = None, reach: Reach | None = None) -> None:
        super().__init__(shown(message, _MESSAGE))
        if by is not None:
            self.by = by
        if reach is not None:
            self.reach = reach

    def __reduce__(self) -> tuple[object, ...]:
        # For copies and pickles: by default they would call the constructor with ``args`` only, and ours need more.
        return _rebuilt, (type(self), self.args, self.__dict__)

    def copy(self) -> Self:
        """A copy for another request. (Each raise adds to an error's traceback, so requests do not share an error.)"""
        copied = copy(self)
        copied.__cause__ = self.__cause__
        return copied

    def named(self, origin: str) -> Self:
        """A copy whose message names the origin. (Backends write "the server" or "the peer", or name nobody.)"""
        named = self.copy()
        message, *rest = self.args
        for nobody in ("the server ", "the peer "):
            if message.startswith(nobody):
                named.args = (f"{origin} {message.removeprefix(nobody)}", *rest)
                return named
        whom = origin.partition(" through ")[0].partition("://")[2]
        if whom not in message and "the proxy " not in message:
            named.args = (f"{origin}: {message}", *rest)
        return named

    def after(self, words: str) -> Self:
        """A copy whose message adds what the peer said before (``"said GOAWAY"``), unless it is in there already."""
        message, *rest = self.args
        if words in message:
            return self
        later = self.copy()
        later.args = (f"{message} (before that, it {words})", *rest)
        return later


def _rebuilt(kind: type[AllswellError], args: tuple[object, ...], facts: dict[str, object]) -> AllswellError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


def described(error: BaseException) -> str:
    """What logs and telemetry say of an error, in one line: the message if the error is ours or the operating system's.

    Of any other error it is only the class, because its message may hold secrets. (The system's errors have a number,
    ``errno``. An ``OSError("…")`` that a program raises has none.)
    """
    told = isinstance(error, AllswellError) or (isinstance(error, OSError) and error.errno is not None)
    return printable(str(error)) if told else type(error).__name__


def first_of(error: BaseException) -> BaseException:
    """The first error in an exception group (a task group makes one); any other error as it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class ConnectFailed(AllswellError):
    """No connection could be made.

    :ivar phase: where it failed: ``"dns"``, ``"tcp"``, ``"tls"``, ``"proxy"`` or ``"quic"``.
    """

    by: Party = "network"
    reach: Reach = "connection"

    def __init__(self, message: str, *, phase: Phase, by: Party | None = None) -> None:
        super().__init__(message, by=by)
        self.phase: Phase = phase

    def besides(self, others: Sequence[ConnectFailed]) -> Self:
        """A copy whose message adds the errors of the attempts before."""
        return self._saying(str(self) + "".join(f" (before that: {error})" for error in others))

    def of(self, whom: str) -> Self:
        """A copy whose message begins with the name of the peer."""
        return self._saying(f"{whom}: {self}")

    def _saying(self, message: str) -> Self:
        other = self.copy()
        other.args = (shown(message, _MESSAGE), *self.args[1:])
        return other


class ProxyRefused(ConnectFailed):
    """A proxy refused a tunnel.

    :ivar status: the status code of an HTTP proxy, or the reply code of a SOCKS proxy (RFC 1928 §6).
    :ivar headers: the header section of its answer: pairs of name and value, in bytes.
    :ivar body: the first bytes of its body, at most 1024.
    """

    def __init__(self, message: str, *, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(message, phase="proxy", by="peer")
        self.status = status
        self.headers = headers
        self.body = body


class AddressNotAllowed(ConnectFailed):
    """``allow_address`` forbids an address. Nothing was sent to that address, and it is not tried again.

    :ivar host: the host that has this address.
    :ivar address: the address.
    :ivar port: the port.
    """

    by: Party = "us"

    def __init__(self, message: str, *, host: str, address: str, port: int) -> None:
        super().__init__(message, phase="tcp", by="us")
        self.host = host
        self.address = address
        self.port = port


class PinMismatch(ConnectFailed):
    """A server has a key that is not among the pins of its host. No request was sent to it.

    :ivar host: the host.
    :ivar seen: the pin of the server's key: ``sha256//…``; empty if the key cannot be read.
    """

    def __init__(self, message: str, *, host: str, seen: str) -> None:
        super().__init__(message, phase="tls", by="peer")
        self.host = host
        self.seen = seen


class ProtocolError(AllswellError):
    """The peer, or the caller, broke HTTP or a protocol below it."""


class LocalProtocolError(ProtocolError):
    """HTTP cannot express the request: a header field is illegal, say, or the body is not as long as announced."""

    by: Party = "us"


class NotOffered(LocalProtocolError):
    """The request is an extended CONNECT (RFC 8441, 9220), and the connection does not offer that. Nothing was sent."""


class UnsupportedProtocol(LocalProtocolError):
    """The URL's scheme is neither http nor https."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol forbids, or ended before its message was complete.

    :ivar missing: what the peer ended without: a ``"response"``, or the ``"end"`` of one that had begun, or of TLS;
        ``None`` if it did something else.
    """

    by: Party = "peer"
    reach: Reach = "connection"

    def __init__(
        self, message: str, *, by: Party | None = None, reach: Reach | None = None, missing: Missing | None = None
    ) -> None:
        super().__init__(message, by=by, reach=reach)
        self.missing: Missing | None = missing


class TransportError(AllswellError):
    """Reading or writing failed in a layer below HTTP.

    :ivar operation: ``"read"`` or ``"write"``.
    """

    by: Party = "network"
    reach: Reach = "connection"

    def __init__(self, message: str, *, operation: Literal["read", "write"], by: Party | None = None) -> None:
        super().__init__(message, by=by)
        self.operation: Literal["read", "write"] = operation


class ExchangeReset(AllswellError):
    """One exchange was reset: by RST_STREAM in HTTP/2, by RESET_STREAM or STOP_SENDING in HTTP/3.

    :ivar code: the error code on the wire (RFC 9113 §7, RFC 9114 §8.1).
    """

    reach: Reach = "exchange"

    def __init__(self, message: str, *, code: int, by: Party) -> None:
        super().__init__(message, by=by)
        self.code = code


class Timeout(AllswellError):
    """Something took longer than the caller allowed.

    :ivar phase: the limit that has passed: ``"connect"``, ``"read"``, ``"write"``, ``"pool"`` or ``"total"``.
    """

    by: Party = "network"

    def __init__(self, message: str, *, phase: TimeoutPhase) -> None:
        super().__init__(message)
        self.phase: TimeoutPhase = phase


class PoolClosed(AllswellError):
    """The pool was closed before the request was over."""

    by: Party = "us"


class NotProcessed(AllswellError):
    """Internal: the peer did not process this request, or probably not. So it may be sent again.

    Callers never get this error. If the pool cannot send the request again, it raises :attr:`cause`.

    :ivar cause: the error that the user sees.
    :ivar proven: ``True`` when the protocol says so (GOAWAY with a lower last id, REFUSED_STREAM, H3_REQUEST_REJECTED,
        a request that was never sent). Any request may then be sent again. ``False`` when it is only likely (a reused
        HTTP/1.1 connection that closed before the first byte of the response, RFC 9112 §9.3.1). Then only an idempotent
        request may be sent again.
    """

    def __init__(self, cause: AllswellError, *, proven: bool) -> None:
        super().__init__(str(cause), by=cause.by, reach=cause.reach)
        self.cause = cause
        self.proven = proven

    def named(self, origin: str) -> Self:
        """As in the base class. The cause names the origin, too."""
        named = super().named(origin)
        named.cause = self.cause.named(origin)
        return named

    def after(self, words: str) -> Self:
        """As in the base class. The cause adds the words, too."""
        later = copy(super().after(words))
        later.cause = self.cause.after(words)
        return later
