"""Errors of HTTP/2, inside the backend and from the peer, and what they mean for a request."""

from __future__ import annotations

from h2.errors import ErrorCodes

from allswell._errors import AllswellError, ExchangeReset, NotProcessed, shown

#: These are about the client's behaviour. A new connection would end with them too, so no request is sent again.
NOT_REPLAYABLE = frozenset((ErrorCodes.ENHANCE_YOUR_CALM, ErrorCodes.INADEQUATE_SECURITY, ErrorCodes.HTTP_1_1_REQUIRED))


class PeerError(Exception):
    """The peer broke the protocol: a connection error (RFC 9113 §5.4.1). It never leaves the backend.

    :ivar told: whether the GOAWAY for it is in the output already.
    """

    def __init__(self, code: int, message: str, *, told: bool = False) -> None:
        super().__init__(shown(message))
        self.code = code
        self.told = told


class StreamError(Exception):
    """A stream error (RFC 9113 §5.4.2), most often a malformed message (§8.1.1). It never leaves the backend."""

    def __init__(self, message: str, code: int = ErrorCodes.PROTOCOL_ERROR) -> None:
        super().__init__(shown(message))
        self.code = code


def error_name(code: int) -> str:
    """The RFC's name of an error code (RFC 9113 §7)."""
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error 0x{code:x}"


def reset_error(code: int, *, answered: bool) -> AllswellError:
    """The error of an exchange after the peer's RST_STREAM.

    :param answered: whether the response's head has come.
    """
    if code == ErrorCodes.HTTP_1_1_REQUIRED:
        return ExchangeReset("the peer wants HTTP/1.1 for this request (HTTP_1_1_REQUIRED)", code=code, by="peer")
    error = ExchangeReset(f"the peer reset the stream: {error_name(code)}", code=code, by="peer")
    if code == ErrorCodes.REFUSED_STREAM and not answered:
        return NotProcessed(error, proven=True)  # RFC 9113 §8.7
    return error
