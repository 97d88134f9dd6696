"""The ledger of a request: its earlier attempts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a request after which the request was sent again.

    :ivar why: how the attempt ended, in words.
    :ivar processed: whether the peer can have acted on it. ``"no"``: the protocol proves that it did not.
        ``"perhaps"``: the connection ended before any answer, or the answer was a failure. ``"declined"``: the server
        asked for another connection (421) or another moment (425), or took no WebSocket in this version of HTTP.
    :ivar http_version: the HTTP version of its connection; empty if there was none.
    """

    why: str
    processed: Literal["no", "perhaps", "declined"]
    http_version: str

    def __str__(self) -> str:
        carried = f"{self.http_version}; " if self.http_version else ""
        return f"{self.why} ({carried}processed: {self.processed})"
