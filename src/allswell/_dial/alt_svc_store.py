"""Keeps the alternatives of Alt-Svc fields: in memory, or in a file, which the next process (or curl) can read."""

from __future__ import annotations

import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from time import time

import httpx2

from allswell._alt_svc_store import Alternative
from allswell._clock import monotonic
from allswell._request.route import DEFAULT_PORTS, authority
from allswell._tasks import logger

#: How many origins are remembered. The least recently learnt are forgotten.
_ORIGINS = 4096

#: How many bytes of a file are read, and how many seconds pass between two writes.
_SIZE = 4 << 20
_PAUSE = 5.0


class AltSvcMemory:
    """An :class:`AltSvcStore` in memory. Clients in several threads may share it.

    :param origins: how many origins are remembered. The least recently learnt are forgotten.
    """

    def __init__(self, origins: int = _ORIGINS) -> None:
        self._limit = origins
        self._kept: OrderedDict[str, tuple[Alternative, ...]] = OrderedDict()
        self._lock = RLock()

    def put(self, origin: str, alternatives: Sequence[Alternative]) -> None:
        with self._lock:
            self._kept.pop(origin, None)
            if alternatives:
                self._kept[origin] = tuple(alternatives)
                if len(self._kept) > self._limit:
                    self._kept.popitem(last=False)

    def get(self, origin: str) -> Sequence[Alternative]:
        with self._lock:
            return self._kept.get(origin, ())

    def origins(self) -> Sequence[str]:
        with self._lock:
            return list(self._kept)

    def flush(self) -> None:
        pass  # memory is not written anywhere


class AltSvcFile(AltSvcMemory):
    """An :class:`AltSvcStore` in a file, in curl's format (https://curl.se/docs/alt-svc.html).

    The file is read when it is first needed. It is replaced as a whole, at most every five seconds and when the pool
    closes. Lines of another format are skipped. If the file cannot be read or written, a warning is logged and memory
    is used. If two processes write the same file, the last one wins.

    :param path: the file's path. The file need not exist, its folder must.
    :param origins: how many origins are remembered. The least recently learnt are forgotten.
    """

    def __init__(self, path: str | os.PathLike[str], origins: int = _ORIGINS) -> None:
        super().__init__(origins)
        self._path = Path(path)
        self._loaded = False
        self._dirty = False
        self._write_at = 0.0

    def put(self, origin: str, alternatives: Sequence[Alternative]) -> None:
        with self._lock:
            self._load()
            super().put(origin, alternatives)
            self._dirty = True
            if monotonic() >= self._write_at:
                self._write()

    def get(self, origin: str) -> Sequence[Alternative]:
        with self._lock:
            self._load()
            return super().get(origin)

    def origins(self) -> Sequence[str]:
        with self._lock:
            self._load()
            return super().origins()

    def flush(self) -> None:
        with self._lock:
            if self._dirty:
                self._write()

    def _write(self) -> None:
        self._dirty = False
        self._write_at = monotonic() + _PAUSE
        now = time()
        text = "# The alt-svc cache of allswell, in curl's format: https://curl.se/docs/alt-svc.html\n"
        text += "".join(
            _line(origin, each) for origin in self._kept for each in self._kept[origin] if each.expires > now
        )
        try:
            # The new file is made beside the old one, and replaces it in one step. So no reader ever sees half of it.
            number, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            try:
                with open(number, "w", encoding="ascii") as file:
                    file.write(text)
                os.replace(name, self._path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            logger.warning("allswell: cannot write the alt-svc cache %s: %s", self._path, error)
            self._write_at = math.inf  # it is tried once more when the pool closes, and not every few seconds

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        try:
            with self._path.open("rb") as file:
                lines = file.read(_SIZE).decode("ascii", "replace").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            logger.warning("allswell: cannot read the alt-svc cache %s: %s", self._path, error)
            return
        found: dict[str, list[Alternative]] = {}
        now = time()
        for origin, alternative in _parsed(lines):
            if alternative.expires > now:
                found.setdefault(origin, []).append(alternative)
        for origin, alternatives in found.items():
            super().put(origin, alternatives)


# A line: the origin's ALPN id, host and port; the alternative's; when it expires; persist; a priority that is always 0.
_WHEN = "%Y%m%d %H:%M:%S"


def _line(origin: str, to: Alternative) -> str:
    url = httpx2.URL(origin)
    host = url.raw_host.decode("ascii")
    when = datetime.fromtimestamp(to.expires, UTC).strftime(_WHEN)
    port = url.port or DEFAULT_PORTS[url.scheme]
    return f'h2 {_bracketed(host)} {port} h3 {_bracketed(to.host)} {to.port} "{when}" {to.persist:d} 0\n'


def _parsed(lines: Sequence[str]) -> Iterator[tuple[str, Alternative]]:
    for line in lines:
        try:
            _, host, port, protocol, to, to_port, day, hour, persist, _ = line.split()
            expires = datetime.strptime(f"{day} {hour}", f'"{_WHEN}"').replace(tzinfo=UTC).timestamp()
            origin = f"https://{authority('https', _bare(host), int(port))}"
            found = Alternative(_bare(to), int(to_port), expires, persist == "1")
        except ValueError:
            continue
        if protocol == "h3" and 0 < found.port < 1 << 16 and found.host:
            yield origin, found


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bare(host: str) -> str:
    return host.removeprefix("[").removesuffix("]")
