"""Name resolution, shared: however many dials want one host's addresses, the resolver is asked once.

``getaddrinfo`` takes a thread of the event loop's few for as long as it runs, so a hundred dials that ask on their own
stand in line for threads. What is found serves for another second too: long enough for all the attempts of one dial
(QUIC's, TCP's 250 ms later, a retry), too short to be a cache. Errors are not kept.
"""

from __future__ import annotations

import errno
import math
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar

import anyio

from allswell._tasks import TaskHost

T = TypeVar("T")

Address = tuple[socket.AddressFamily, Any]
#: Finds the addresses of a host, for a port, in a family; raises ``OSError``.
Resolve = Callable[[str, int, int], Awaitable[Sequence[Address]]]

#: Seconds that an answer serves.
_FRESH = 1.0
_HOSTS = 256


class Shared(Generic[T]):
    """What one task finds, for as many as wait for it. The task belongs to no caller: it goes on when all have left."""

    def __init__(self, host: TaskHost, find: Callable[[], Awaitable[T]], *, name: str) -> None:
        self._over = anyio.Event()
        self._scope = anyio.CancelScope()
        self._found: list[T] = []
        self._error: Exception = OSError(errno.ECANCELED, "called off")
        self.at = math.inf  # when it was found
        host.spawn(self._run, find, name=name)

    async def _run(self, find: Callable[[], Awaitable[T]]) -> None:
        try:
            with self._scope:
                self._found.append(await find())
                self.at = monotonic()
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        finally:
            self._over.set()

    @property
    def over(self) -> bool:
        """Whether it need not be waited for."""
        return self._over.is_set()

    @property
    def failed(self) -> bool:
        """Whether it is over, and nothing was found."""
        return self.over and not self._found

    async def wait(self) -> T:
        """What was found.

        :raises Exception: what ``find`` raised; ``OSError`` when it was called off.
        """
        await self._over.wait()
        if not self._found:
            raise self._error
        return self._found[0]

    async def aclose(self) -> None:
        """Call it off: when this returns, its task is over. (Cancelled, it will be soon.)"""
        self._scope.cancel()
        await self._over.wait()


class Lookups:
    """What one pool asks the system's resolver."""

    def __init__(self, host: TaskHost) -> None:
        self._host = host
        self._asked: OrderedDict[tuple[str, int, int], Shared[list[Address]]] = OrderedDict()

    async def addresses(self, host: str, port: int, family: int) -> Sequence[Address]:
        """The host's addresses in this family, in the resolver's order.

        :raises OSError: there are none, or the resolver cannot tell.
        """
        key = host, port, family
        asked = self._asked.get(key)
        if asked is None or asked.failed or asked.at + _FRESH < monotonic():
            find = partial(resolve, host, port, family)
            asked = self._asked[key] = Shared(self._host, find, name=f"allswell resolves {host}")
            self._asked.move_to_end(key)
            if len(self._asked) > _HOSTS:
                self._forget_one()
        return await asked.wait()

    def _forget_one(self) -> None:
        """The oldest that is over: the others are still to be closed."""
        over = next((key for key, asked in self._asked.items() if asked.over), None)
        if over is not None:
            del self._asked[over]

    def forget(self) -> None:
        """The network has changed: what was found is nothing to go by. (Who waits gets what is being found.)"""
        for asked in self._asked.values():
            asked.at = -math.inf if asked.over else asked.at

    async def aclose(self) -> None:
        """Call off what is under way."""
        for asked in self._asked.values():
            await asked.aclose()


async def resolve(host: str, port: int, family: int) -> list[Address]:
    """Ask the system's resolver.

    :raises OSError: the host has no address in this family, or the resolver cannot tell.
    """
    try:
        found = await anyio.getaddrinfo(host, port, family=socket.AddressFamily(family), type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(str(error)) from error
    return [(each[0], each[4]) for each in found]
