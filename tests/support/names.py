"""A resolver of a test's own: which names have which addresses, and how often each was asked for."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest


class Names:
    """What there is to be resolved. Other names do not exist; addresses stay what they are.

    :ivar addresses: of each name.
    :ivar asked: lookups of each name, in any family.
    :ivar held: events that lookups of a name wait for.
    """

    def __init__(self, **addresses: str | list[str]) -> None:
        self.addresses = {
            name.replace("_", "."): [given] if isinstance(given, str) else given for name, given in addresses.items()
        }
        self.asked: Counter[str] = Counter()
        self.held: dict[str, anyio.Event] = {}
        self._real = anyio.getaddrinfo

    async def _getaddrinfo(self, host: Any, port: Any, *, family: int = 0, **more: Any) -> list[Any]:
        known = self.addresses.get(host)
        if known is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.asked[host] += 1
        await anyio.lowlevel.checkpoint()
        if host in self.held:
            await self.held[host].wait()
        found: list[Any] = []
        for address in known:
            if family in (0, socket.AF_INET6 if ":" in address else socket.AF_INET):
                found += await self._real(address, port, flags=socket.AI_NUMERICHOST, **more)
        if not found:
            raise socket.gaierror(socket.EAI_NODATA, "No address associated with hostname")
        return found


@contextmanager
def names(**addresses: str | list[str]) -> Iterator[Names]:
    """Names and their addresses, for as long as the block lasts: ``names(a_test="127.0.0.1")``."""
    made = Names(**addresses)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio, "getaddrinfo", made._getaddrinfo)
        yield made
