"""The transfer of one URL: it is requested, redirects are followed, failures are retried, the response is written."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import anyio
import httpx2

from allswell._cli.arguments import Asked, as_bytes, with_scheme
from allswell._cli.client import CommandClient
from allswell._cli.exits import Exit, Failed, failed
from allswell._cli.output import Output, head_lines, output, say, text
from allswell._cli.progress import Meter, Meters
from allswell._cli.sent import Sent, sent
from allswell._clock import monotonic
from allswell._errors import printable
from allswell._fields import shown_url
from allswell._pool.retries import retry_after

#: The statuses after which a retry makes sense. They are curl's.
_FOR_NOW = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_DELAY = 600.0

_VERSIONS = {"http11": "HTTP/1.1", "http2": "HTTP/2", "http3": "HTTP/3"}
#: The names of ``-w`` for the times of trace events.
_TIMES = {
    "connect_tcp.complete": "time_connect",
    "start_tls.complete": "time_appconnect",
    "connect_quic.complete": "time_appconnect",
    "send_request_headers.started": "time_pretransfer",
}


class Transfer:
    """One URL of the command line.

    :ivar facts: the values for ``-w``, by name.
    """

    def __init__(self, asked: Asked, client: CommandClient, url: str, index: int, meters: Meters) -> None:
        self._asked = asked
        self._client = client
        self._url = url
        self._index = index
        self._meters = meters
        self._meter: Meter = meters.meter(on_terminal=True)
        self._output = Output(None)
        self._began = monotonic()
        self._request: httpx2.Request | None = None
        self._response: httpx2.Response | None = None
        self.facts: dict[str, Any] = {"url": url, "urlnum": index, "num_connects": 0, "size_upload": 0}

    async def run(self) -> Exit:
        """Make the transfer, and write what ``-w`` asks for. Return its exit status."""
        asked, code = self._asked, Exit.OK
        try:
            self._output = output(asked, self._url, self._index)
            self._meter = self._meters.meter(on_terminal=self._output.on_terminal)
            await self._tries()
            await self._output.complete()
        except (Failed, httpx2.InvalidURL) as caught:
            error = failed(caught, self._url)
            code = error.code
            self.facts["errormsg"] = str(error)
            if not asked.silent or asked.show_error:
                say(f"allswell: ({code:d}) {_with_url(error, self._url)}")
        finally:
            self._output.close()
        self.facts["exitcode"] = int(code)
        if asked.write_out is not None:
            self._finish()
            write_out(asked.write_out, self.facts, self._response)
        return code

    async def _tries(self) -> None:
        asked, delay, began = self._asked, 1.0, monotonic()
        left = 0 if self._upload == "-" else int(asked.retry)  # standard input cannot be read again
        while True:
            why: Failed | None = None
            response = None
            try:
                response = await self._try()
                again = response.status_code in _FOR_NOW
            except Failed as error:
                why, response = error, self._response
                again = self._may_pass(error)
            if left == 0 or not again:
                if why is not None:
                    raise why
                return
            pause = retry_after(response.headers.raw) if response is not None else None
            pause = asked.retry_delay or (delay if pause is None else pause)
            if asked.retry_max_time and monotonic() + pause > began + asked.retry_max_time:
                if why is not None:
                    raise why
                return
            if not asked.silent:
                what = f"HTTP {response.status_code}" if why is None and response is not None else str(why)
                say(
                    f"allswell: {shown_url(with_scheme(self._url))}: {what}; retry in {pause:g} s ({left} retries left)"
                )
            self._output.begin_anew()
            await anyio.sleep(pause)
            left, delay = left - 1, min(delay * 2, _LONGEST_DELAY)

    def _may_pass(self, error: Failed) -> bool:
        if self._asked.retry_all or error.code in (Exit.TIMEOUT, Exit.HOST_NAME, Exit.PROXY_NAME):
            return True
        if error.code is Exit.STATUS:
            return self._response is not None and self._response.status_code in _FOR_NOW
        return error.code is Exit.CONNECT and self._asked.retry_refused

    @property
    def _upload(self) -> str | None:
        uploads = self._asked.uploads
        return uploads[self._index] if self._index < len(uploads) else None

    async def _try(self) -> httpx2.Response:
        """One try, with all its redirects. Return the last response.

        :raises Failed: if it failed, for whatever reason.
        """
        with ExitStack() as files:
            return await self._hops(files)

    async def _hops(self, files: ExitStack) -> httpx2.Response:
        asked, url = self._asked, self._url
        self._began, self._response, hops = monotonic(), None, 0
        for name in ("size_upload", "num_connects"):
            self.facts[name] = 0
        deadline = self._began + asked.max_time if asked.max_time else None  # (0 means no limit, as in curl)
        try:
            upload = self._upload
            what = sent(asked, url, upload, self._sent, self._client.codings, files)
            self._meter.begin(f"↑ {upload}" if upload is not None else url, what.size)
            request = self._first(what)
            first = request
            while True:
                url = str(request.url)
                following = await self._exchange(request, first, what, deadline, hops)
                assert self._response is not None
                if following is None:
                    return self._response
                hops += 1
                self.facts["num_redirects"] = hops
                self.facts["time_redirect"] = monotonic() - self._began
                request = self._prepared(following, what, first)
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise failed(error, url) from error
        except OSError as error:  # the file was readable before
            raise Failed(Exit.READ, f"cannot read the file to be sent: {error.strerror or error}") from error

    def _first(self, what: Sent) -> httpx2.Request:
        asked = self._asked
        extensions: dict[str, Any] = {
            "trace": self._heard,
            "informational": self._informational,
            "head": self._head,
        }
        if asked.target is not None:
            extensions["target"] = as_bytes(asked.target)
        fields = [(as_bytes(name), as_bytes(value)) for name, value in what.fields]
        made = self._client.build_request(
            what.method, what.url, headers=fields, extensions=extensions, timeout=self._client.timeout, **what.body
        )
        if what.form_type is not None:
            boundary = made.headers["content-type"].partition("boundary=")[2]
            made.headers["Content-Type"] = f"{what.form_type}; boundary={boundary}"
        if self._output_start:
            made.headers["Range"] = f"bytes={self._output_start}-"
        return self._prepared(made, what, made)

    @property
    def _output_start(self) -> int:
        return self._output.start or 0 if self._asked.resume is not None else 0

    def _prepared(self, request: httpx2.Request, what: Sent, first: httpx2.Request) -> httpx2.Request:
        """Remove what curl would not send. Keep the cookies of ``-b`` for the first host, of ``-H`` for its origin."""
        asked = self._asked
        for name in what.removed - {"host"}:
            request.headers.pop(name, None)
        if request is not first and self._response is not None and self._client.drops_body(self._response):
            request = _without_body(request)  # httpx2 keeps it if the method is GET by -X
        if asked.method is not None:
            request.method = asked.method
        trusted = self._trusts(request, first)
        if request is not first:
            if asked.auto_referer and not asked.has_field("referer") and self._request is not None:
                request.headers["Referer"] = str(self._request.url.copy_with(userinfo=b"", fragment=None))
            framed = "content-length" in request.headers or "transfer-encoding" in request.headers
            if not framed and not asked.has_field("content-type"):
                request.headers.pop("content-type", None)
            if asked.trusted_location and "authorization" in first.headers:
                request.headers["Authorization"] = first.headers["authorization"]
        if asked.has_field("cookie"):  # with -H; httpx2 removes it from redirects
            if trusted and "cookie" in first.headers:
                request.headers["Cookie"] = first.headers["cookie"]
        elif self._client.literal_cookies and (trusted or request.url.host == first.url.host):
            kept = request.headers.get("cookie")
            literal = self._client.literal_cookies
            request.headers["Cookie"] = f"{kept}; {literal}" if kept and kept != literal else literal
        return request

    def _trusts(self, request: httpx2.Request, first: httpx2.Request) -> bool:
        """Whether a request may have the secrets of the first one: it has the same origin, or all are trusted."""
        here, there = request.url, first.url
        return self._asked.trusted_location or (here.scheme, here.netloc) == (there.scheme, there.netloc)

    async def _exchange(
        self, request: httpx2.Request, first: httpx2.Request, what: Sent, deadline: float | None, hops: int
    ) -> httpx2.Request | None:
        """Send one request, and write its response. Return the request that a redirect asks for."""
        asked, self._request = self._asked, request
        if deadline is not None:
            left = deadline - monotonic()
            if left <= 0:
                raise Failed(Exit.TIMEOUT, f"the transfer was not complete within {asked.max_time:g} s")
            request.extensions = {**request.extensions, "total_timeout": left}
        auth = None
        if asked.digest and what.user is not None and self._trusts(request, first):
            auth = httpx2.DigestAuth(*what.user)
        response = await self._client.send(request, stream=True, auth=auth, follow_redirects=False)
        try:
            self.facts["time_starttransfer"] = monotonic() - self._began
            following = response.next_request if asked.location else None
            if following is not None:
                if 0 <= asked.max_redirects <= hops:
                    raise Failed(Exit.REDIRECTS, f"there were more than {asked.max_redirects:g} redirects")
                scheme = following.url.scheme
                if scheme not in ("http", "https"):
                    raise Failed(Exit.UNSUPPORTED, f"the server redirects to {scheme!r}, not to http or https")
                self._client.check_redirect(following.url)
                async for _ in response.aiter_raw():
                    pass  # the body of a redirect that is followed is not written
                return following
            if asked.location and response.has_redirect_location:
                raise Failed(Exit.URL, "the server redirects to a URL that is not valid")
            await self._body(response)
        finally:
            await response.aclose()
        return None

    async def _body(self, response: httpx2.Response) -> None:
        asked, status = self._asked, response.status_code
        wrong = status >= 400 and (asked.fail or asked.fail_with_body)
        complaint = Failed(Exit.STATUS, f"the server answered {status}")
        if self._output_start and status == 416:
            return  # the file is already complete
        if wrong and not asked.fail_with_body:
            raise complaint
        part = re.match(r"bytes +0*(\d+)-", response.headers.get("content-range", ""), re.ASCII | re.IGNORECASE)
        length = response.headers.get("content-length", "")
        if self._output_start and not asked.head and (part is None or part[1] != str(self._output_start)):
            if part is None and length == str(self._output_start):
                return  # the server does not send parts, but the file is complete
            raise Failed(Exit.RANGE, "the server does not send the part that was asked for, so -C cannot continue")
        self._meter.begin(f"↓ {self._output.path or self._url}", int(length) if length.isdecimal() else None)
        try:
            if not asked.head:  # with -X, there may be a body that nobody asked for
                async for piece in response.aiter_bytes() if asked.compressed else response.aiter_raw():
                    await self._output.write(piece)
                    self._meter.count(len(piece))
        finally:
            self.facts["size_download"] = response.num_bytes_downloaded
        if wrong:
            raise complaint

    # What is shown and counted

    def _sent(self, size: int) -> None:
        self.facts["size_upload"] += size
        self._meter.count(size)

    async def _heard(self, name: str, _: Mapping[str, Any]) -> None:
        part, event = name.split(".", 1)
        if event in _TIMES:
            self.facts[_TIMES[event]] = monotonic() - self._began
        if event in ("connect_tcp.complete", "connect_quic.complete"):
            self.facts["num_connects"] += 1
            host = "" if self._request is None else self._request.url.raw_host.decode("ascii")
            found_at = self._client.looked_up.get(host, self._began)
            self.facts["time_namelookup"] = max(0.0, found_at - self._began)
        if event == "send_request_headers.started" and self._asked.verbose and self._request is not None:
            request = self._request
            target = request.extensions.get("target", request.url.raw_path)
            say(f"> {request.method} {text(target)} {_VERSIONS[part]}")
            for field, value in request.headers.raw:
                say(f"> {text(field)}: {text(value)}")
            say(">")

    async def _head(self, response: httpx2.Response) -> None:
        self._response = response
        await self._tell(head_lines(response))

    async def _informational(self, head: Any) -> None:
        status = f"{text(head.http_version)} {head.status} {text(head.reason)}"
        fields = [f"{text(name)}: {text(value)}" for name, value in head.headers]
        await self._tell([status, *fields])

    async def _tell(self, lines: list[str]) -> None:
        asked = self._asked
        if asked.verbose:
            for line in [*lines, ""]:
                say(f"< {line}".rstrip())
        if asked.include or asked.head:
            await self._output.head(lines)
        if asked.dump is not None:
            await self._client.dump.head(lines)

    def _finish(self) -> None:
        facts, response = self.facts, self._response
        facts["time_total"] = monotonic() - self._began
        if response is None:
            return
        facts["url_effective"] = shown_url(response.request.url)
        facts["http_code"] = response.status_code
        facts["http_version"] = response.http_version.removeprefix("HTTP/")
        facts["method"] = response.request.method
        facts["scheme"] = response.request.url.scheme.upper()
        facts["content_type"] = response.headers.get("content-type", "")
        facts["num_headers"] = len(response.headers.raw)
        if response.next_request is not None and not self._asked.location:
            facts["redirect_url"] = shown_url(response.next_request.url)
        if self._output.path is not None:
            facts["filename_effective"] = self._output.path
        stream = response.extensions["network_stream"]
        for what, extra in (("remote", "server_addr"), ("local", "client_addr")):
            address = stream.get_extra_info(extra)
            if isinstance(address, tuple):
                facts[f"{what}_ip"], facts[f"{what}_port"] = address[:2]
        if facts["size_upload"] == 0:
            facts["size_upload"] = int(response.request.headers.get("content-length", "0"))


def _with_url(error: Failed, url: str) -> str:
    """The text of an error, with the URL in front if the text does not name the host."""
    shown = shown_url(with_scheme(url))
    host = shown.partition("://")[2].partition("/")[0] if error.code is not Exit.URL else ""
    return str(error) if not host or host in str(error) else f"{shown}: {error}"


# --- -w

_VARIABLE = re.compile(r"%(header)?\{([^}]*)\}|%(%)|\\([nrt])")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_ZERO = {
    "http_code": "000",
    "http_version": "0",
    "num_redirects": 0,
    "num_headers": 0,
    "size_download": 0,
    "ssl_verify_result": 0,
    "remote_port": 0,
    "local_port": 0,
}
_TEXTS = (
    "content_type",
    "errormsg",
    "filename_effective",
    "local_ip",
    "method",
    "redirect_url",
    "remote_ip",
    "scheme",
    "url_effective",
)
_SECONDS = (
    "time_appconnect",
    "time_connect",
    "time_namelookup",
    "time_pretransfer",
    "time_redirect",
    "time_starttransfer",
    "time_total",
)


def _without_body(request: httpx2.Request) -> httpx2.Request:
    framing = (b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in request.headers.raw if name.lower() not in framing]
    return httpx2.Request("GET", request.url, headers=headers, extensions=request.extensions)


def write_out(form: str, facts: Mapping[str, Any], response: httpx2.Response | None) -> None:
    """Write what ``-w`` asks for, to standard output, or standard error after ``%{stderr}``."""
    file, at = sys.stdout, 0
    for match in _VARIABLE.finditer(form):
        file.write(form[at : match.start()])
        at = match.end()
        header, name, percent, escape = match.groups()
        if header is not None:
            values = response.headers.get_list(name) if response is not None else []
            file.write(printable(values[0]) if values else "")
        elif name in ("stdout", "stderr"):
            file.flush()
            file = getattr(sys, name)
        else:
            file.write(percent or (_ESCAPES[escape] if escape else _variable(name, facts)))
    file.write(form[at:])
    file.flush()


def _variable(name: str, facts: Mapping[str, Any]) -> str:
    name = "http_code" if name == "response_code" else name
    if name in _SECONDS:
        return f"{facts.get(name, 0.0):.6f}"
    if name in ("speed_download", "speed_upload"):
        size = facts.get(name.replace("speed", "size"), 0)
        return str(int(size / facts["time_total"])) if facts["time_total"] else "0"
    if name in facts or name in _ZERO:
        return printable(str(facts.get(name, _ZERO.get(name))))
    if name in _TEXTS:
        return ""
    say(f"allswell: unknown --write-out variable: {name!r}")
    return ""
