"""Ready scripts for :func:`tests.support.peer.scripted_peer`: how servers answer, and how badly they end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum

from tests.support.peer import PeerConnection, Script


class Ending(Enum):
    """What a script says last."""

    #: Nothing: the client ends the connection, and is answered.
    NONE = "none"
    #: close_notify (over TLS), then FIN; then it listens until the client ends too.
    POLITE = "polite"
    #: FIN without close_notify; then it listens until the client ends too.
    FIN = "fin"
    #: RST.
    RST = "rst"
    #: ``close()``, as plain servers do: close_notify, FIN, and RST to whatever comes afterwards.
    CLOSE = "close"


def end(connection: PeerConnection, ending: Ending) -> None:
    """End the connection so."""
    if ending in (Ending.POLITE, Ending.CLOSE):
        connection.send_close_notify()
    if ending in (Ending.POLITE, Ending.FIN):
        connection.fin()
    elif ending is Ending.CLOSE:
        connection.close()
    elif ending is Ending.RST:
        connection.reset()


def target(request: bytes) -> bytes:
    """The request target: ``b"/7"`` of ``GET /7 HTTP/1.1``."""
    return request.split(b" ", 2)[1]


def body_of(request: bytes) -> bytes:
    """What follows the request's head, as it stood on the wire."""
    return request.partition(b"\r\n\r\n")[2]


def response(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    """A response with Content-Length. :param fields: further header lines, ``"Name: value"``."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def answers(
    count: int | None = None,
    *,
    body: Callable[[bytes], bytes] = target,
    fields: tuple[str, ...] = (),
    announce: bool = False,
    instead: bool = False,
    ending: Ending = Ending.POLITE,
    delay: float = 0.0,
    together: int = 0,
    pieces: int | None = None,
) -> Script:
    """Answer ``count`` requests on each connection (all, by default), then end.

    :param body: the response's body made from the request; its target by default, so that answers can be told apart.
    :param announce: the last answer says ``Connection: close``.
    :param instead: do not end right after the last answer, but in place of the next.
    :param delay: seconds before each answer.
    :param together: the first answer on each connection waits until so many connections have a request. So the client
        needs that many, however slow it is.
    :param pieces: send each answer in writes of that many bytes.
    """
    all_there = threading.Barrier(together) if together else None

    def script(connection: PeerConnection) -> None:
        answered = 0
        while count is None or answered < count:
            request = connection.read_request()
            if not request:
                return  # the client ended first: the peer answers that politely by itself
            answered += 1
            closing = ("Connection: close",) if announce and answered == count else ()
            if all_there is not None and answered == 1:
                all_there.wait(60)
            connection.pause(delay)
            connection.send(response(body(request), *fields, *closing), pieces=pieces)
        if instead and not connection.read_request():
            return
        end(connection, ending)

    return script


def huge(size: int, *, chunked: bool = False, block: int = 256 * 1024) -> Script:
    """Answer every request with ``size`` zero bytes, streamed from one static block."""
    zeros = memoryview(bytes(block))

    def script(connection: PeerConnection) -> None:
        while connection.read_request():
            framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
            connection.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
            for start in range(0, size, block):
                part = zeros[: min(block, size - start)]
                if chunked:
                    connection.send(b"%x\r\n" % len(part))
                connection.send(part)
                if chunked:
                    connection.send(b"\r\n")
            if chunked:
                connection.send(b"0\r\n\r\n")

    return script


def close_delimited(body: bytes = b"until the end", ending: Ending = Ending.POLITE) -> Script:
    """Answer one request with a body that only the connection's end delimits (RFC 9112, 6.3, item 8)."""
    return says(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body, ending)


def says(data: bytes, ending: Ending = Ending.NONE, *, pieces: int | None = None) -> Script:
    """Read one request and answer with exactly these bytes; for everything malformed."""

    def script(connection: PeerConnection) -> None:
        if connection.read_request():
            connection.send(data, pieces=pieces)
            end(connection, ending)

    return script


def never_ends(count: int | None = None) -> Script:
    """Answer ``count`` requests (all, by default), then hear the client's close_notify and FIN and answer neither.

    The connection counts as ended when the client's FIN or RST has been seen.
    """
    answer = answers(count, ending=Ending.NONE)

    def script(connection: PeerConnection) -> None:
        connection.answers_close_notify = False
        answer(connection)
        connection.read_until_end()
        connection.stall()

    return script


def silent(connection: PeerConnection) -> None:
    """Say nothing at all, not even TLS's handshake (with ``handshake=False``), until the client ends."""
    connection.read_until_end()


def half_response(connection: PeerConnection) -> None:
    """Answer with half of the promised body, then stall until released; then end without close_notify, by FIN."""
    if connection.read_request():
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nten bytes.")
        connection.stall()
        connection.fin()


def refuses_upload(ending: Ending = Ending.POLITE) -> Script:
    """Answer 413 as soon as the head is there and end so; with ``CLOSE`` the kernel answers the body by RST."""

    def script(connection: PeerConnection) -> None:
        if connection.read_head():
            connection.send(response(b"too much", "Connection: close", status="413 Content Too Large"))
            end(connection, ending)

    return script


def continues(connection: PeerConnection) -> None:
    """Invite every body by 100 (RFC 9110, 10.1.1) and answer with it."""
    while head := connection.read_head():
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.send(response(connection.read_body(head)))
