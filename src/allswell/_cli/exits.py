"""Exit statuses. They are curl's."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from enum import IntEnum

import httpx2

from allswell._errors import (
    ConnectFailed,
    ExchangeReset,
    LocalProtocolError,
    PinMismatch,
    RemoteProtocolError,
    Timeout,
    TransportError,
    UnsupportedProtocol,
)
from allswell._fields import no_url


class Exit(IntEnum):
    """The exit statuses."""

    OK = 0
    UNSUPPORTED = 1
    USAGE = 2
    URL = 3
    PROXY_NAME = 5
    HOST_NAME = 6
    CONNECT = 7
    HTTP2 = 16
    PARTIAL = 18
    STATUS = 22
    WRITE = 23
    READ = 26
    TIMEOUT = 28
    RANGE = 33
    TLS = 35
    REDIRECTS = 47
    NOTHING = 52
    SEND = 55
    RECEIVE = 56
    CLIENT_CERTIFICATE = 58
    CERTIFICATE = 60
    REWIND = 65
    AUTHORITIES = 77
    PINS = 90
    HTTP2_STREAM = 92
    HTTP3 = 95
    QUIC = 96
    PROXY = 97


class Failed(Exception):
    """A transfer, or the whole command, failed.

    :ivar code: its exit status.
    """

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


def failed(error: Exception, url: str) -> Failed:
    """The failure of the command that an error of the client causes."""
    if isinstance(error, Failed):
        return error
    if isinstance(error, httpx2.InvalidURL):
        return Failed(Exit.URL, no_url(url, error))
    if isinstance(error, httpx2.StreamConsumed):
        return Failed(Exit.REWIND, "the request body cannot be sent again: it came from standard input")
    return Failed(_code(error), str(error))


def _code(error: BaseException) -> Exit:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.CertificateError):
            return Exit.CERTIFICATE
    for cause in causes:
        match cause:
            case Timeout():
                return Exit.TIMEOUT
            case UnsupportedProtocol():
                return Exit.UNSUPPORTED
            case LocalProtocolError() if str(cause).startswith("cannot request "):
                return Exit.URL
            case LocalProtocolError():
                return Exit.SEND
            case PinMismatch():
                return Exit.PINS
            case ConnectFailed():
                return _not_connected(cause)
            case ExchangeReset():
                return Exit.HTTP3 if "HTTP/3" in str(cause) else Exit.HTTP2_STREAM
            case RemoteProtocolError(missing="response"):
                return Exit.NOTHING
            case RemoteProtocolError(missing="end"):
                return Exit.PARTIAL
            case RemoteProtocolError():
                return Exit.HTTP2 if "HTTP/2" in str(cause) else Exit.RECEIVE
            case TransportError():
                return Exit.SEND if cause.operation == "write" else Exit.RECEIVE
    if isinstance(error, httpx2.TimeoutException):
        return Exit.TIMEOUT
    if isinstance(error, httpx2.ProxyError):
        return Exit.PROXY
    return Exit.RECEIVE


def _not_connected(error: ConnectFailed) -> Exit:
    words = str(error)
    match error.phase:
        case "dns":
            return Exit.PROXY_NAME if "the proxy " in words else Exit.HOST_NAME
        case "tls":
            # (For QUIC there is no ssl.CertificateError. So the error's text is looked at.)
            return Exit.CERTIFICATE if "certificate" in words and error.by != "peer" else Exit.TLS
        case "proxy":
            return Exit.PROXY if "socks" in words.lower() else Exit.RECEIVE
        case "quic":
            return Exit.QUIC
    return Exit.CONNECT


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
