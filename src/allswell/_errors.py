"""Every error allswell raises: who caused it, and how far it reaches; and what others said, made fit to be told in one.

A server chooses the words of its GOAWAY, of its CONNECTION_CLOSE, of a status line. They may hold what moves a
terminal's cursor or begins a new line of a log, and be as long as the server likes. Whoever tells of them passes them
through :func:`shown`, and the root of all errors sees to it once more.
"""

from __future__ import annotations

from copy import copy
from typing import Any, Literal, Self

Party = Literal["us", "peer", "network"]
Reach = Literal["exchange", "connection"]
Phase = Literal["dns", "tcp", "tls", "proxy", "quic"]
TimeoutPhase = Literal["connect", "read", "write", "pool", "total"]

#: Characters of a peer's words that are shown, and of a whole message.
_WORDS, _MESSAGE = 200, 4000


def shown(said: bytes | str, limit: int = _WORDS) -> str:
    """What somebody else said, in one line of at most so many characters, none of which acts on a terminal."""
    text = said if isinstance(said, str) else said[: 4 * limit].decode("utf-8", "replace")
    if len(text) > limit or not text.isprintable():
        text = printable(" ".join(text[: 4 * limit].split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """The same with a replacement for each character that is not to be seen: of C0, C1, or one that turns the text."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


class AllswellError(Exception):
    """The root of all errors of allswell.

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

    def __reduce__(self) -> tuple[Any, ...]:
        # For copies and pickles: what our constructors are given is more than ``args``.
        return _rebuilt, (type(self), self.args, self.__dict__)

    def copy(self) -> Self:
        """The same for one more who has to be told: wherever an error is raised, its traceback grows."""
        copied = copy(self)
        copied.__cause__ = self.__cause__
        return copied

    def named(self, origin: str) -> Self:
        """The same with a name in its message: backends know none, and say "the server" or "the peer", or nobody."""
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
        """The same with what its maker had said before: ``"said GOAWAY"``; as it is, where that is in the message."""
        message, *rest = self.args
        if words in message:
            return self
        later = self.copy()
        later.args = (f"{message} (before that, it {words})", *rest)
        return later


def _rebuilt(kind: type[AllswellError], args: tuple[Any, ...], facts: dict[str, Any]) -> AllswellError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


def first_of(error: BaseException) -> BaseException:
    """The first error in an exception group, which is what a task group makes of one; any other as it is."""
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


class ProxyRefused(ConnectFailed):
    """A proxy was asked for a tunnel and answered otherwise.

    :ivar status: the status code of an HTTP proxy, the reply code of a SOCKS proxy (RFC 1928 §6).
    :ivar headers: the header section of its answer.
    :ivar body: how the answer's body begins, at most 1024 bytes.
    """

    def __init__(self, message: str, *, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(message, phase="proxy", by="peer")
        self.status = status
        self.headers = headers
        self.body = body


class ProtocolError(AllswellError):
    """Somebody broke HTTP, or a protocol below it."""


class LocalProtocolError(ProtocolError):
    """The request asks for something HTTP cannot say (an illegal header, a body of the wrong length)."""

    by: Party = "us"


class UnsupportedProtocol(LocalProtocolError):
    """The URL's scheme is not one of HTTP's."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol forbids, or ended before it had said all."""

    by: Party = "peer"
    reach: Reach = "connection"


class TransportError(AllswellError):
    """The layers below HTTP failed while reading or writing.

    :ivar operation: ``"read"`` or ``"write"``.
    """

    by: Party = "network"
    reach: Reach = "connection"

    def __init__(self, message: str, *, operation: Literal["read", "write"], by: Party | None = None) -> None:
        super().__init__(message, by=by)
        self.operation: Literal["read", "write"] = operation


class ExchangeReset(AllswellError):
    """One exchange was reset: RST_STREAM in HTTP/2, RESET_STREAM or STOP_SENDING in HTTP/3.

    :ivar code: the error code that was on the wire.
    """

    reach: Reach = "exchange"

    def __init__(self, message: str, *, code: int, by: Party) -> None:
        super().__init__(message, by=by)
        self.code = code


class Timeout(AllswellError):
    """Something took longer than the caller allowed.

    :ivar phase: ``"connect"``, ``"read"``, ``"write"``, ``"pool"`` or ``"total"``.
    """

    by: Party = "network"

    def __init__(self, message: str, *, phase: TimeoutPhase) -> None:
        super().__init__(message)
        self.phase: TimeoutPhase = phase


class PoolClosed(AllswellError):
    """The pool was closed before, or while, this request was served."""

    by: Party = "us"


class NotProcessed(AllswellError):
    """Internal: the peer did not process this request, so it may be sent again.

    The user never sees it: when the pool cannot replay, it raises :attr:`cause`.

    :ivar cause: what the user would see.
    :ivar proven: ``True`` when the protocol itself says so (GOAWAY beyond the last id, REFUSED_STREAM,
        H3_REQUEST_REJECTED, a request that never left us): any request may go again. ``False`` when it is only
        likely (a reused HTTP/1.1 connection that closed before the first byte of a response, RFC 9112 §9.3.1):
        only an idempotent one may.
    """

    def __init__(self, cause: AllswellError, *, proven: bool) -> None:
        super().__init__(str(cause), by=cause.by, reach=cause.reach)
        self.cause = cause
        self.proven = proven

    def named(self, origin: str) -> Self:
        """See above; of its cause too."""
        named = super().named(origin)
        named.cause = self.cause.named(origin)
        return named

    def after(self, words: str) -> Self:
        """See above; of its cause too."""
        later = copy(super().after(words))
        later.cause = self.cause.after(words)
        return later
