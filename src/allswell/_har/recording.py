"""A recording: what it keeps, and how it is written to a file."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Collection
from operator import itemgetter
from typing import Any, TextIO

import httpx2

from allswell._har.document import Secrets, connections, entries
from allswell._har.hops import Ear, Hop, Recorded
from allswell._report import counted


class HarRecording:
    """A recording by :meth:`AsyncClient.har`.

    :param redact: the names whose values are not shown.
    :param max_body: how many bytes of each body are kept.
    :param beside: the recordings of the same client.
    :ivar max_body: how many bytes of each body are kept.
    :ivar hops: the requests so far.
    :raises TypeError: if ``redact`` is one string.
    :raises ValueError: if ``max_body`` is negative.
    """

    def __init__(self, redact: Collection[str], max_body: int, beside: Recordings) -> None:
        if isinstance(redact, str):
            raise TypeError("redact must be a collection of names, not a str")
        if max_body < 0:
            raise ValueError("max_body must not be negative")
        self._secrets = Secrets(redact)
        self.max_body = max_body
        self._ear = beside.ear
        self.hops: list[Hop] = []

    def as_dict(self) -> dict[str, Any]:
        """The recording so far, with the content of a HAR file.

        :return: a new dict for ``json.dumps``: ``{"log": {"version": "1.2", "entries": [...], ...}}``.
        """
        told = [each for hop in self.hops for each in entries(hop, self._secrets, self.max_body)]
        used = {each.connection for hop in self.hops for each in hop.attempts if each.connection is not None}
        return {
            "log": {
                "version": "1.2",
                "creator": {
                    "name": "allswell",
                    "version": sys.modules["allswell"].__version__,
                },  # (the package is above all layers, so it is not imported)
                "pages": [],  # Firefox demands this
                "entries": [entry for _, entry in sorted(told, key=itemgetter(0))],
                "_connections": connections(self._ear.connections, used),
            }
        }

    def __repr__(self) -> str:
        return f"<HarRecording, {counted(len(self.hops), 'request')}>"


class Recordings:
    """The recordings of one client that are under way.

    :ivar ear: gets the events of the client's pools.
    """

    def __init__(self) -> None:
        self._now: tuple[HarRecording, ...] = ()
        self.ear = Ear()

    def begin(self, recording: HarRecording) -> None:
        """Begin a recording."""
        self._now += (recording,)

    def end(self, recording: HarRecording) -> bool:
        """End a recording. Return whether others go on."""
        self._now = tuple(each for each in self._now if each is not recording)
        if not self._now:
            self.ear.stop()
        return bool(self._now)

    def over(self, transport: httpx2.AsyncBaseTransport) -> Recorded:
        """Wrap a transport, so that all recordings get its requests."""
        most = max(each.max_body for each in self._now)
        return Recorded(transport, self.ear, most, *(each.hops for each in self._now))


class HarFile:
    """A file that is written beside its place, and moved there at the end. So no reader ever sees half of it.

    A device or a pipe is written directly. A link stays a link, and its target is replaced.

    :raises OSError: if the file cannot be written. Nothing has changed then.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.realpath(path)
        self._beside: str | None = None
        if os.path.exists(path) and not os.path.isfile(path):
            self._file = _opened(path)
            return
        folder, name = os.path.split(self._path)
        number, self._beside = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        self._file = _opened(number)

    def write(self, recording: HarRecording) -> None:
        """Write the recording, and put the file in its place.

        :raises OSError: if the file cannot be written. The old file is still there.
        """
        try:
            with self._file:
                json.dump(recording.as_dict(), self._file, indent=1, ensure_ascii=False)
                self._file.write("\n")
            if self._beside is not None:
                os.replace(self._beside, self._path)
        except BaseException:
            if self._beside is not None:
                os.unlink(self._beside)
            raise


def _opened(file: str | os.PathLike[str] | int) -> TextIO:
    """Open a file for JSON. Lone surrogates, which UTF-8 cannot encode, are escaped as in JSON."""
    return open(file, "w", encoding="utf-8", errors="backslashreplace")
