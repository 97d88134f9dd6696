"""The common part of all tunnels through a proxy. Once open, they pass bytes on, and the layers below end them."""

from __future__ import annotations

from collections.abc import Callable

from allswell._deadline import Deadline
from allswell._errors import ConnectFailed
from allswell._filters.interface import ByteStream, OverAnother
from allswell._report import LayerEnd, Outcome


def no_tunnel(proxy: str, why: str) -> str:
    """The message of a failure. (Errors from below name the proxy, too.)"""
    return f"no tunnel through the proxy {proxy}: {why.replace(f'the proxy {proxy} ', 'it ')}"


class TunnelFilter(OverAnother, ByteStream):
    """A tunnel over a connection to a proxy. The subclasses open it.

    :param lower: the connection to the proxy.
    :param proxy: the proxy's name in errors (without credentials).
    """

    def __init__(self, lower: ByteStream, proxy: str) -> None:
        self._lower: ByteStream = lower
        self._proxy = proxy
        self._received = bytearray()  # not taken yet: in the end, what came behind the proxy's answer
        self._ready = False
        self._end: LayerEnd | None = None

    # For the subclasses, while they open it

    async def _receive(self) -> bool:
        """Wait for more in ``_received``. Return ``False`` at the end of the stream."""
        while (data := self._lower.receive_nowait()) is None:
            await self._lower.wait_readable()
        self._received += data
        return len(data) > 0

    def _failed(self, what: str) -> ConnectFailed:
        return ConnectFailed(no_tunnel(self._proxy, what), phase="proxy", by="peer")

    # Passing on

    @property
    def truncated(self) -> bool:
        return self._lower.truncated

    def receive_nowait(self) -> memoryview | None:
        if self._received:
            first, self._received = self._received, bytearray()
            return memoryview(first)
        return self._lower.receive_nowait()

    def quiet(self) -> bool:
        return not self._received and self._lower.quiet()

    async def wait_readable(self) -> None:
        if not self._received:
            await self._lower.wait_readable()

    def listen(self, function: Callable[[], None] | None) -> bool:
        return self._lower.listen(function)

    def transmit(self, data: bytes | memoryview) -> None:
        self._lower.transmit(data)

    @property
    def dead(self) -> bool:
        return self._lower.dead

    # Ending

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        """Say nothing: the layers below end the tunnel."""
        return self._finish(Outcome.CLEAN)

    def abort(self, *, reset: bool = True) -> LayerEnd:
        return self._finish(Outcome.ABORTED)

    def _finish(self, outcome: Outcome) -> LayerEnd:
        if self._end is None:
            self._end = LayerEnd(self.name, "", "", outcome if self._ready else Outcome.SKIPPED)
        return self._end
