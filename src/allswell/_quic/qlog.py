"""A connection's qlog, written when the connection is over. (Every user could read a file that aioquic makes.)"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from aioquic.quic.logger import QuicLogger, QuicLoggerTrace

logger = logging.getLogger("allswell")


class Qlog(QuicLogger):
    """See the module.

    :param open_log: opens a file to append to.
    :raises ValueError: if the folder does not exist.
    """

    def __init__(self, folder: str, open_log: Callable[[Path], TextIO]) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._open = open_log
        if not self._folder.is_dir():
            raise ValueError(f"there is no folder {folder} for qlogs")

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        super().end_trace(trace)
        told = self.to_dict()
        try:
            with self._open(self._folder / f"{told['traces'][0]['common_fields']['ODCID']}.qlog") as file:
                json.dump(told, file)
        except OSError as error:  # the connection's end must go on without it
            logger.warning("allswell: a qlog was not written: %s", error)
