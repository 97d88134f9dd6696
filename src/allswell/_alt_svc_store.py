"""Alternative services, and the interface of a store of them. (`_dial/alt_svc_store.py` has two stores.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Alternative(NamedTuple):
    """An alternative service that speaks HTTP/3 (RFC 7838 §2).

    :ivar host: a host name or IP address, without brackets.
    :ivar port: a UDP port.
    :ivar expires: seconds of Unix time. (A monotonic clock would not outlast the process, or the computer's sleep.)
    :ivar persist: whether it survives a change of the network (§3.1).
    """

    host: str
    port: int
    expires: float
    persist: bool = False


class AltSvcStore(Protocol):
    """Keeps alternatives by origin. Its methods are called in the event loop, so they must not block."""

    def put(self, origin: str, alternatives: Sequence[Alternative]) -> None:
        """Keep the alternatives of an origin, in place of any earlier ones.

        :param origin: in lower case, without the default port: ``"https://example.org"``.
        :param alternatives: in the server's order of preference. If there are none, forget the origin.
        """

    def get(self, origin: str) -> Sequence[Alternative]:
        """Return what was put last for this origin. It may contain expired alternatives."""

    def origins(self) -> Sequence[str]:
        """Return the origins that have alternatives."""

    def flush(self) -> None:
        """Write to the disk what is not written yet. Called when the pool closes."""
