"""HTTP/1.1 at an origin, without I/O. h11 reads requests. Responses are written here, because they may break rules."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

import h11

from allswell.testing._engine import Body, Broken, Complete, Head, Heard
from allswell.testing._script import Response


class Http1:
    """The engine of one connection. A stream is a request's number. One request is answered at a time; others wait."""

    version = "HTTP/1.1"
    streams = None

    def __init__(self) -> None:
        self.last = False
        self._parser = h11.Connection(h11.SERVER)
        self._stream = 0
        self._chunked = False
        self._out = bytearray()

    def receive(self, data: bytes) -> Iterator[Heard]:
        """See the base class."""
        self._parser.receive_data(data)
        return self._heard()

    @property
    def unfinished(self) -> str:
        """The beginning of a head."""
        waiting, _ = self._parser.trailing_data
        return "a request's head" if self._parser.their_state is h11.IDLE and waiting else ""

    def take(self) -> bytes:
        """See the base class."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def _heard(self) -> Iterator[Heard]:
        while True:
            try:
                event = self._parser.next_event()
            except h11.RemoteProtocolError as error:
                yield Broken(str(error))
                return
            if isinstance(event, h11.Request):
                self._stream += 1
                fields = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
                options = ",".join(value for name, value in fields if name == "connection").lower()
                self.last = event.http_version < b"1.1" or "close" in options
                if self._parser.they_are_waiting_for_100_continue:
                    self._out += b"HTTP/1.1 100 Continue\r\n\r\n"
                yield Head(self._stream, event.method.decode(), event.target.decode("latin-1"), fields)
            elif isinstance(event, h11.Data):
                yield Body(self._stream, bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                yield Complete(self._stream)
            else:
                return

    def head(self, stream: int, method: str, response: Response, *, last: bool) -> None:
        """See the base class."""
        self._chunked = response.framing == "chunked" and not response.bodiless(method)
        lines = [f"HTTP/1.1 {response.status} {_phrase(response.status)}"]
        lines += [f"{name}: {value}" for name, value in response.fields]
        if response.framing == "chunked":
            lines.append("Transfer-Encoding: chunked")
        elif response.framing == "length" and response.status not in (204, 304):
            lines.append(f"Content-Length: {len(response.body)}")
        if last or self.last or response.framing == "close":
            self.last = True
            lines.append("Connection: close")
        self._out += "\r\n".join([*lines, "", ""]).encode("latin-1")

    def room(self, stream: int) -> int:
        """Any number: the connection waits until TCP takes them."""
        return 1 << 16

    def body(self, stream: int, data: bytes) -> None:
        """See the base class."""
        self._out += b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    def finish(self, stream: int) -> None:
        """See the base class."""
        if self._chunked:
            self._out += b"0\r\n\r\n"

    def done(self, stream: int) -> Iterator[Heard]:
        """The exchange is over. The next one gets a new parser."""
        waiting, _ = self._parser.trailing_data
        self._parser = h11.Connection(h11.SERVER)
        return self.receive(waiting) if waiting else iter(())


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
