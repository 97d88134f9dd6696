"""The progress of downloads and uploads, on standard error.

It is shown if standard error is a terminal, the body is not written to a terminal, and rich is installed (the extra
``cli``). ``-#`` draws curl's simple bar, also without a terminal.
"""

from __future__ import annotations

import shutil
import sys
from typing import Any, Protocol

from allswell._cli.arguments import Asked
from allswell._errors import printable


class Meter(Protocol):
    """Shows how far one transfer is."""

    def begin(self, what: str, total: int | None) -> None:
        """The transfer begins, or begins again.

        :param total: its size in bytes, if that is known.
        """

    def count(self, size: int) -> None:
        """So many more bytes were sent or received."""


class Meters:
    """Makes the meters of all transfers."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._shown: Any = None

    def meter(self, *, on_terminal: bool) -> Meter:
        """The meter for one transfer.

        :param on_terminal: whether its body is written to a terminal. Then there is no meter, not even ``-#``.
        """
        asked = self._asked
        if asked.silent or asked.no_meter or on_terminal:
            return _Quiet()
        if asked.bar:
            return _Hashes()
        if not sys.stderr.isatty():
            return _Quiet()
        if self._shown is None:
            self._shown = _rich()
        return _Quiet() if self._shown is None else _Bar(self._shown)

    def stop(self) -> None:
        """End the display."""
        if self._shown is not None:
            self._shown.stop()


class _Quiet:
    def begin(self, what: str, total: int | None) -> None:
        pass

    def count(self, size: int) -> None:
        pass


class _Hashes:
    """A line of ``#``, as wide as the terminal."""

    def __init__(self) -> None:
        self._total: int | None = None
        self._done = 0
        self._shown = -1
        self._began = False

    def begin(self, what: str, total: int | None) -> None:
        self._total, self._done, self._shown = total, 0, -1

    def count(self, size: int) -> None:
        self._done += size
        if not self._total:
            return
        part = min(1.0, self._done / self._total)
        if int(part * 1000) == self._shown:
            return
        self._shown = int(part * 1000)
        width = max(10, min(shutil.get_terminal_size().columns, 400) - 8)
        end = "\n" if part == 1.0 else ""
        print(f"\r{'#' * int(width * part):<{width}} {part * 100:5.1f}%", end=end, file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, shown: Any) -> None:
        self._shown = shown
        self._task: Any = None

    def begin(self, what: str, total: int | None) -> None:
        what = printable(what)
        if self._task is None:
            self._task = self._shown.add_task(what, total=total)
        else:
            self._shown.reset(self._task, total=total, description=what)

    def count(self, size: int) -> None:
        if self._task is not None:
            self._shown.advance(self._task, size)


def _rich() -> Any:
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
    except ImportError:
        return None  # the extra is not installed
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
    )
    progress.start()
    return progress
