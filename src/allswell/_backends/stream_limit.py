"""What is assumed of a server's limit of HTTP/2 streams. (The dialer keeps it and need not import h2 for that.)"""

from __future__ import annotations

#: RFC 9113 §6.5.2 recommends at least 100. It is assumed until the peer's SETTINGS have come.
_ASSUMED_STREAMS = 100


class StreamLimit:
    """How many streams an origin allows: learnt by the last connection, assumed by the next until the origin says."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = _ASSUMED_STREAMS

    @property
    def taken(self) -> int:
        """How many a connection will probably take. A limit of 0 says "not now", and not how many it will take then."""
        return self.value or _ASSUMED_STREAMS
