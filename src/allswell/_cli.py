"""The ``allswell`` command: requests from a terminal, and how their connections ended.

Exit status: 0, every URL was answered; 1, a request failed; 2, wrong usage; 3, ``--fail`` and a status of 400 or more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import anyio
import httpx2

from allswell import __version__
from allswell._client import AsyncClient
from allswell._clock import monotonic
from allswell._config import DEFAULT_GRACE
from allswell._errors import printable
from allswell._fields import no_url, shown_url
from allswell._filters.keylog import new_context
from allswell._pool.pool import ConnectionPool
from allswell._report import CloseReport, ConnectionEnd

#: By option: what makes the client speak that version and no other.
_VERSIONS: Mapping[str, Mapping[str, Any]] = {
    "http1": {"http2": False},
    "http2": {"http1": False},
    "http3": {"http3": "only"},
}

Line = Callable[[str, str], None]


class _BinaryBody(Exception):
    """A body that no terminal can show."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    try:
        with _bodies(asked.output) as bodies:
            return anyio.run(partial(_run, asked, bodies))
    except OSError as error:
        parser.exit(1, f"allswell: {error}\n")
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("allswell", description="Make HTTP requests that end well.")
    add = parser.add_argument
    add("urls", nargs="+", metavar="URL", help="https:// is added where there is no scheme")
    add("-X", "--request", metavar="METHOD", help="GET; POST when there is data")
    add("-H", "--header", action="append", default=[], type=_header, metavar="'NAME: VALUE'", help="may be repeated")
    add("-d", "--data", type=_data, metavar="DATA", help="the body; @FILE for a file's content, @- for standard input")
    add("-o", "--output", type=Path, metavar="FILE", help="write bodies there and not to standard output")
    add("-i", "--include", action="store_true", help="the response's head before its body")
    add("-v", "--verbose", action="store_true", help="the heads of requests and responses, on standard error")
    add("-s", "--silent", action="store_true", help="no status line on standard error")
    add("-L", "--location", action="store_true", help="follow redirects")
    add("-f", "--fail", action="store_true", help="exit with 3 on a status of 400 or more")
    add("-k", "--insecure", action="store_true", help="trust any certificate")
    add("--cacert", type=Path, metavar="FILE", help="trust these certificates (PEM) and no others")
    add("-m", "--max-time", type=float, metavar="SECONDS", help="for each request, until its response was read")
    only = parser.add_mutually_exclusive_group()
    for option in _VERSIONS:
        only.add_argument(f"--{option}", dest="only", action="store_const", const=option, help="speak no other version")
    add("--ends", action="store_true", help="show how each connection ended, layer by layer, on standard error")
    add("--grace", type=float, default=DEFAULT_GRACE, metavar="SECONDS", help="for all goodbyes together (%(default)g)")
    add("--version", action="version", version=f"allswell {__version__}")
    return parser


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError("it is not of the form 'Name: value'")  # (it may be a secret)
    return name.strip(), value.strip()


def _data(text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode()
    if text == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(text[1:]).read_bytes()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text[1:]}: {error.strerror}") from error


def _bodies(output: Path | None) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdout.buffer) if output is None else output.open("wb")


async def _run(asked: argparse.Namespace, bodies: BinaryIO) -> int:
    out, err = _writer(sys.stdout), _writer(sys.stderr)
    ends: list[ConnectionEnd] = []
    status = 0
    async with _client(asked, ends) as client:
        for given in asked.urls:
            url = given if "://" in given else f"https://{given}"
            try:
                code = await _fetch(client, url, asked, bodies, out, err)
            except httpx2.InvalidURL as error:
                err(f"allswell: {no_url(url, error)}", "bold red")
                status = 1
            except (httpx2.HTTPError, _BinaryBody) as error:
                err(f"allswell: {shown_url(url)}: {error}", "bold red")
                status = 1
            else:
                if asked.fail and code >= 400:
                    status = status or 3
    if asked.ends:
        seconds = client.close_report.seconds if client.close_report is not None else 0.0
        # Those that ended before the close, in the background, are told too.
        err(str(CloseReport(tuple(ends), asked.grace, seconds)), "")
    return status


@asynccontextmanager
async def _client(asked: argparse.Namespace, ends: list[ConnectionEnd]) -> AsyncIterator[AsyncClient]:
    verify = False if asked.insecure else str(asked.cacert) if asked.cacert else True
    pool = ConnectionPool(
        ssl_context=new_context(verify),
        grace=asked.grace,
        on_connection_end=ends.append,
        **_VERSIONS.get(asked.only, {}),
    )
    async with AsyncClient(
        pool=pool, grace=asked.grace, total_timeout=asked.max_time, timeout=30.0, follow_redirects=asked.location
    ) as client:
        yield client


async def _fetch(
    client: AsyncClient, url: str, asked: argparse.Namespace, bodies: BinaryIO, out: Line, err: Line
) -> int:
    method = asked.request or ("POST" if asked.data is not None else "GET")
    began = monotonic()
    async with client.stream(method, url, headers=asked.header, content=asked.data) as response:
        if asked.verbose:
            request = response.request
            err(f"> {request.method} {request.url.raw_path.decode('ascii')}", "bold")
            _tell_headers(request.headers, "> ", err)
        status = f"{response.http_version} {response.status_code} {response.reason_phrase}".rstrip()
        if asked.verbose:
            err(f"< {status}", _colour(response))
            _tell_headers(response.headers, "< ", err)
        if asked.include:
            out(status, _colour(response))
            _tell_headers(response.headers, "", out)
            out("", "")
        sys.stdout.flush()
        async for piece in response.aiter_bytes():
            if b"\0" in piece and bodies.isatty():
                raise _BinaryBody("the body is binary, and not for a terminal: -o FILE saves it")
            bodies.write(piece)
        bodies.flush()
        if not asked.silent:
            err(f"{status}  {response.num_bytes_downloaded} bytes in {monotonic() - began:.3f} s", _colour(response))
        return response.status_code


def _tell_headers(headers: httpx2.Headers, before: str, line: Line) -> None:
    for name, value in headers.multi_items():
        line(f"{before}{name}: {value}", "cyan")


def _colour(response: httpx2.Response) -> str:
    return "bold red" if response.is_error else "bold green"


def _writer(file: TextIO) -> Line:
    """Writes lines: in colour on a terminal where rich is installed (extra ``cli``), plain otherwise.

    A server has its say in most of them: a status line, fields, errors. None of it acts on the terminal.
    """
    write = _plain_or_rich(file)
    return lambda text, style: write("\n".join(map(printable, text.replace("\t", " ").split("\n"))), style)


def _plain_or_rich(file: TextIO) -> Line:
    if file.isatty():
        try:
            from rich.console import Console
            from rich.text import Text
        except ImportError:
            pass  # it is an extra
        else:
            console = Console(file=file)
            return lambda text, style: console.print(Text(text, style=style), soft_wrap=True)
    return lambda text, _: print(text, file=file)
