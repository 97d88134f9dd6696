"""Where bodies and heads are written, and what may be shown on a terminal.

Bodies are written as they come, each piece at once. In all else that a server sends (status lines, fields, errors)
control characters are replaced, so it cannot control the terminal.
"""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from pathlib import Path
from typing import BinaryIO, TextIO

import anyio
import httpx2

from allswell._cli.arguments import Asked, with_scheme
from allswell._cli.exits import Exit, Failed
from allswell._errors import printable

#: Characters that file names must not have. On Windows some more have a meaning: folders, drives, streams.
_NOT_IN_NAMES = "/\0" + ('\\:*?"<>|' if sys.platform == "win32" else "")
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"


class Output:
    """Where the response of one URL is written. A file is opened with the first byte, so a failure leaves no file.

    :param path: a file's path; ``"-"`` for standard output; ``None`` for standard output, but no binary body on a
        terminal.
    :param start: keep so many bytes of a file that exists; ``None``: keep none.
    :param folders: whether to make folders that are missing.
    """

    def __init__(self, path: str | None, *, start: int | None = None, folders: bool = False) -> None:
        self.path = path if path != "-" else None
        self._any = path == "-"
        self.start = start
        self._folders = folders
        self._file: BinaryIO | None = None
        self._may_block = False  # whether a write may wait for a reader: it is a pipe or a terminal

    @property
    def on_terminal(self) -> bool:
        """Whether the response is written to a terminal."""
        return self.path is None and sys.stdout.isatty()

    async def write(self, piece: bytes) -> None:
        """Write a piece of the body, at once.

        :raises Failed: if it cannot be written, or is binary and the output is a terminal.
        """
        if b"\0" in piece and not self._any and self.on_terminal:
            raise Failed(Exit.WRITE, "the body is binary, so it is not shown: -o FILE saves it, -o - shows it")
        try:
            file = self._opened()
            if self._may_block:
                await _write_all(file.fileno(), piece)
            else:
                file.write(piece)
                file.flush()
        except BrokenPipeError:
            silence(sys.stdout)
            raise Failed(Exit.WRITE, "cannot write the body: the reader of the pipe has closed it") from None
        except OSError as error:
            raise Failed(Exit.WRITE, f"cannot write {self.path or 'the body'}: {error.strerror}") from error

    async def head(self, lines: list[str]) -> None:
        """Write a head."""
        bold = self.on_terminal and "NO_COLOR" not in os.environ
        end = "\n" if self.on_terminal else "\r\n"
        await self.write("".join(_emphasized(line, bold) + end for line in [*lines, ""]).encode("utf-8"))

    def begin_anew(self) -> None:
        """Drop what was written, because the request is tried again. (From standard output nothing can be dropped.)"""
        if self._file is not None and self.path is not None:
            self._file.truncate(self.start or 0)
            self._file.seek(0, 2)

    async def complete(self) -> None:
        """The body is complete. If it was empty, make an empty file."""
        if self.path is not None:
            await self.write(b"")

    def close(self) -> None:
        """Write no more."""
        if self._file is not None and self.path is not None:
            self._file.close()
        self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            if self.path is None:
                sys.stdout.flush()
                self._file = sys.stdout.buffer
            else:
                if self._folders:
                    Path(self.path).parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "wb" if self.start is None else "ab")  # noqa: SIM115  # see `close`
            self._may_block = not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode)
        return self._file


async def _write_all(file: int, piece: bytes) -> None:
    """Write to a file that may block, without blocking the event loop, so signals are still handled.

    If poll says that there is room, a write of up to ``PIPE_BUF`` bytes does not block.
    """
    if not hasattr(select, "poll"):  # Windows, where one cannot ask a pipe for room
        return await anyio.to_thread.run_sync(_write_blocking, file, piece, abandon_on_cancel=True)
    poll = select.poll()
    poll.register(file, select.POLLOUT)
    rest = memoryview(piece)
    while rest:
        if not poll.poll(0):
            await anyio.wait_writable(file)
        rest = rest[os.write(file, rest[: select.PIPE_BUF]) :]
    return None


def _write_blocking(file: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(file, rest) :]


def silence(file: TextIO) -> None:
    """Drop what is still buffered for a file without a reader. Python would raise again when it flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def output(asked: Asked, url: str, index: int) -> Output:
    """Where the response of one URL is written.

    :raises Failed: if the file shall be named as in the URL, and the URL has no name.
    """
    path = asked.outputs[index] if index < len(asked.outputs) else "" if not asked.remote_name_all else None
    if path is None:
        httpx2.URL(with_scheme(url))  # if it is none, that is the error
        path = re.split("[?#]", with_scheme(url).partition("://")[2])[0].partition("/")[2].rpartition("/")[2]
        path = path.translate(dict.fromkeys(map(ord, _NOT_IN_NAMES), "_"))
        if path in ("", ".", ".."):
            raise Failed(Exit.WRITE, "the URL's path has no file name: use -o FILE")
    if path not in ("", "-") and asked.output_dir is not None:
        path = f"{asked.output_dir}/{path}"
    start = None
    if asked.resume is not None:
        here = Path(path)
        start = int(asked.resume) if asked.resume != "-" else here.stat().st_size if path and here.is_file() else 0
    return Output(path or None, start=start, folders=asked.create_dirs)


def head_lines(response: httpx2.Response) -> list[str]:
    """The lines of a response's head, without control characters."""
    status = f"{response.http_version} {response.status_code} {text(response.extensions.get('reason_phrase', b''))}"
    return [status, *(f"{text(name)}: {text(value)}" for name, value in response.headers.raw)]


def text(said: bytes) -> str:
    """A peer's bytes as text without control characters."""
    try:
        decoded = said.decode("utf-8")
    except UnicodeDecodeError:
        decoded = said.decode("latin-1")
    return printable(decoded.replace("\t", " "))


def _emphasized(line: str, bold: bool) -> str:
    name, colon, value = line.partition(":")
    return f"{_BOLD}{name}{_PLAIN}{colon}{value}" if bold and colon else line


def say(line: str) -> None:
    """Write a line to standard error."""
    print("\n".join(map(printable, line.replace("\t", " ").split("\n"))), file=sys.stderr, flush=True)
