"""An origin for the command and curl: it remembers what was sent, byte for byte, and answers as the path says."""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

BODY = bytes(range(1, 256)) * 40


class Origin:
    """An origin that runs.

    :ivar requests: what came since :meth:`forget`.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}

    def forget(self) -> None:
        """Begin anew."""
        self.requests, self.counts = [], {}


@contextmanager
def curl_origin() -> Iterator[Origin]:
    """Run it."""

    class Handler(_Handler):
        origin: Origin

        def do(self) -> None:
            self.answer(self.origin)

        def __getattr__(self, name: str) -> Callable[[], None]:
            if name.startswith("do_"):
                return self.do
            raise AttributeError(name)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that has enough leaves."""

    with Server(("127.0.0.1", 0), Handler) as server:
        Handler.origin = Origin(server.server_address[1])
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Handler.origin
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, *_: object) -> None:
        pass

    def version_string(self) -> str:
        return "origin"

    def date_time_string(self, timestamp: float | None = None) -> str:
        return "Thu, 01 Jan 1970 00:00:00 GMT"

    def answer(self, origin: Origin) -> None:
        body = self._body()
        fields = sorted((name.lower(), value) for name, value in self.headers.items())
        origin.requests.append({"method": self.command, "target": self.path, "fields": fields, "body": body})
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        name, _, rest = url.path.lstrip("/").partition("/")
        route = getattr(self, f"_{name}", None)
        if route is None:
            self.say(200, b"you sent " + self.command.encode() + b" " + body, content_type="text/plain")
        else:
            route(rest, query, origin, body)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("content-length", "0")))

    def say(self, status: int, body: bytes, **fields: str) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-").title(), value)
        if "content_length" not in fields and status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _status(self, rest: str, *_: Any) -> None:
        self.say(int(rest), b"as you wish\n")

    def _redirect(self, rest: str, query: dict[str, str], *_: Any) -> None:
        to = f"/redirect/{int(rest) - 1}?{urlsplit(self.path).query}" if int(rest) > 1 else query.get("to", "/there")
        self.say(int(query.get("status", "302")), b"elsewhere\n", location=to)

    def _body_of(self, *_: Any) -> None:
        self.say(200, BODY)

    def _gzip(self, *_: Any) -> None:
        if "gzip" in self.headers.get("accept-encoding", ""):
            self.say(200, gzip.compress(b"packed\n", mtime=0), content_encoding="gzip")
        else:
            self.say(200, b"plain\n")

    def _empty(self, *_: Any) -> None:
        self.say(200, b"")

    def _part(self, *_: Any) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if match is None:
            return self.say(200, BODY)
        first, last = int(match[1]), int(match[2] or len(BODY) - 1)
        if first >= len(BODY):
            return self.say(416, b"no", content_range=f"bytes */{len(BODY)}")
        piece = BODY[first : last + 1]
        return self.say(206, piece, content_range=f"bytes {first}-{first + len(piece) - 1}/{len(BODY)}")

    def _fixed(self, *_: Any) -> None:
        self.say(206, b"other", content_range=f"bytes 7-11/{len(BODY)}")

    def _huge(self, *_: Any) -> None:
        self.say(206, b"other", content_range=f"bytes {'1' * 5000}-2/{len(BODY)}")

    def _cut(self, *_: Any) -> None:
        self.say(200, b"half", content_length="8")
        self.close_connection = True

    def _silent(self, *_: Any) -> None:
        self.close_connection = True

    def _nonsense(self, *_: Any) -> None:
        self.wfile.write(b"HTTP/1.1 what is this\r\n\r\n")
        self.close_connection = True

    def _stuck(self, *_: Any) -> None:
        self.rfile.read(1)  # until it leaves
        self.close_connection = True

    def _cookies(self, *_: Any) -> None:
        self.send_response(200)
        self.send_header("Set-Cookie", "first=1; Path=/")
        self.send_header("Set-Cookie", "second=2; Path=/; HttpOnly")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _soon(self, rest: str, query: dict[str, str], origin: Origin, _: bytes) -> None:
        count = origin.counts[rest] = origin.counts.get(rest, 0) + 1
        if count < int(rest):
            self.say(503, b"not yet\n", retry_after="0")
        else:
            self.say(200, b"now\n")

    def _digest(self, *_: Any) -> None:
        given = dict(re.findall(r'(\w+)="?([^",]+)"?', self.headers.get("authorization", "")))
        if not given:
            challenge = 'Digest realm="here", nonce="d2fe2b", qop="auth", algorithm=MD5'
            return self.say(401, b"who are you?", www_authenticate=challenge)

        def md5(text: str) -> str:
            return hashlib.md5(text.encode()).hexdigest()

        first, second = md5("ada:here:lovelace"), md5(f"{self.command}:{given['uri']}")
        expected = md5(f"{first}:d2fe2b:{given['nc']}:{given['cnonce']}:{given['qop']}:{second}")
        return self.say(200 if given["response"] == expected else 403, b"well\n")
