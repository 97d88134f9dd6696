"""Shared name resolution: if many dials want the addresses of one host, the resolver is asked once.

``getaddrinfo`` takes one of the event loop's few threads, so a hundred dials would wait for threads. An answer is used
for one more second. That is long enough for all attempts of one dial (QUIC's, and TCP's 250 ms later),
and too short to be a cache. An error is used for a tenth of that, so that a retry asks anew.

A ``resolver`` of the settings is asked once for both families, and shared in the same way. Unlike the system's, it is
cancelled if no dial waits for it any more.
"""

from __future__ import annotations

import errno
import math
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from functools import partial
from ipaddress import ip_address
from typing import Generic, TypeVar, cast

import anyio

from allswell._addresses import Resolver, SocketAddress
from allswell._clock import monotonic
from allswell._request.request import Request
from allswell._request.response import Response
from allswell._tasks import TaskHost

K = TypeVar("K")
T = TypeVar("T")

Address = tuple[socket.AddressFamily, SocketAddress]
Send = Callable[[Request], Awaitable[Response]]
#: For a resolver of the settings: sends requests over the pool that it resolves for.
SEND: ContextVar[Send] = ContextVar("allswell send")
#: Finds the addresses of a host, for a port, in a family. It raises ``OSError``.
Resolve = Callable[[str, int, int], Awaitable[Sequence[Address]]]

#: How many seconds an answer is used, and an error.
_FRESH, _ERROR_FRESH = 1.0, 0.1
_HOSTS = 256


class Shared(Generic[T]):
    """The result of one task, for all that wait for it. The task belongs to no caller, and goes on if all have left.

    :param find: returns the result, and for how many seconds it may be used.
    :ivar found: the result; ``None`` until there is one.
    :ivar waiting: how many wait for it, if its users count them.
    """

    def __init__(self, host: TaskHost, find: Callable[[], Awaitable[tuple[T, float]]], *, name: str) -> None:
        self.found: T | None = None
        self.waiting = 0
        self._until = -math.inf
        self._over = anyio.Event()
        self._scope = anyio.CancelScope()
        self._finished = False
        self._error: Exception = OSError(errno.ECANCELED, "called off")
        host.spawn(self._run, find, name=name)

    async def _run(self, find: Callable[[], Awaitable[tuple[T, float]]]) -> None:
        try:
            with self._scope:
                self.found, seconds = await find()
                self._until = monotonic() + seconds
                self._finished = True
        except Exception as error:  # noqa: BLE001 - raised by wait()
            self._error = error
            self._until = monotonic() + _ERROR_FRESH
            self._finished = True
        finally:
            self._over.set()

    @property
    def over(self) -> bool:
        """Whether the task is over."""
        return self._over.is_set()

    @property
    def serves(self) -> bool:
        """Whether the task is under way, or its result may still be used."""
        return not self.over or monotonic() < self._until

    @property
    def called_off(self) -> bool:
        """Whether it was cancelled: by :meth:`cancel`, or with all other tasks of the event loop."""
        return self.over and not self._finished

    @property
    def cancelled(self) -> bool:
        """Whether :meth:`cancel` was called."""
        return self._scope.cancel_called

    async def ended(self) -> None:
        """Wait until it is over."""
        await self._over.wait()

    async def wait(self) -> T:
        """Wait for the result.

        :raises Exception: what ``find`` raised; ``OSError`` if it was cancelled.
        """
        await self._over.wait()
        if self.found is None:
            raise self._error.with_traceback(None)  # many may raise it, and each time its traceback grows
        return self.found

    def cancel(self) -> None:
        """Cancel the task, unless it is over."""
        if not self.over:
            self._scope.cancel()


class SharedFinds(Generic[K, T]):
    """Shared results by key. Each is found once, as long as it may be used.

    :param limit: how many are kept. The oldest that is not under way is forgotten.
    """

    def __init__(self, host: TaskHost, limit: int) -> None:
        self._host = host
        self._limit = limit
        self._asked: OrderedDict[K, Shared[T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._asked)

    def get(self, key: K, find: Callable[[], Awaitable[tuple[T, float]]], *, name: str) -> Shared[T]:
        """The result for a key. If no result may be used, ``find`` begins.

        :param name: the name of its task.
        """
        asked = self._asked.get(key)
        if asked is None or not asked.serves:
            asked = self._asked[key] = Shared(self._host, find, name=name)
            self._asked.move_to_end(key)
            if len(self._asked) > self._limit:
                over = next((each for each, shared in self._asked.items() if shared.over), None)
                if over is not None:
                    del self._asked[over]
        return asked

    def leave(self, key: K) -> None:
        """Cancel the task for a key if nobody waits for it."""
        asked = self._asked.get(key)
        if asked is not None and not asked.waiting:
            asked.cancel()

    def forget(self) -> None:
        """Forget all results, and cancel what is under way."""
        for key, shared in list(self._asked.items()):
            shared.cancel()
            if shared.over:
                del self._asked[key]

    async def ended(self) -> None:
        """Wait until no task is under way."""
        for shared in list(self._asked.values()):
            await shared.ended()


class Lookups:
    """Looks up addresses for one pool, by its ``resolver`` and by the system's.

    :ivar send: sends the requests of a resolver; see :data:`SEND`.
    """

    def __init__(self, host: TaskHost, resolver: Resolver | None = None) -> None:
        self.finds: SharedFinds[tuple[str, int, int], list[Address]] = SharedFinds(host, _HOSTS)
        self.send: Send | None = None
        self._resolver = resolver

    async def addresses(self, host: str, port: int, family: int, *, call_off: bool = True) -> Sequence[Address]:
        """The host's addresses in this family, in the resolver's order. A lookup that is cancelled begins anew.

        :param call_off: whether to cancel the settings' resolver if nobody waits for it after this call.
        :raises OSError: if there are none, or the resolver fails.
        """
        if self._resolver is not None:
            given = await self._shared((host, 0, 0), partial(self._ask, self._resolver, host), call_off=call_off)
            if given:  # (if it is empty, the system's resolver is asked)
                found = [(kind, (to[0], port, *to[2:])) for kind, to in given if family in (kind, socket.AF_UNSPEC)]
                if not found:
                    raise OSError("the resolver gave no address of this family")
                return found
        return await self._shared((host, port, family), partial(_system, host, port, family), call_off=False)

    async def _shared(
        self, key: tuple[str, int, int], find: Callable[[], Awaitable[tuple[list[Address], float]]], *, call_off: bool
    ) -> list[Address]:
        stopped = 0
        while True:
            asked = self.finds.get(key, find, name=f"allswell resolves {key[0]}")
            asked.waiting += 1
            try:
                await asked.ended()
            finally:
                asked.waiting -= 1
                if call_off and not asked.waiting:
                    asked.cancel()
            stopped += not asked.cancelled
            if not asked.called_off or stopped > 1:  # once: with all other tasks; twice: by the resolver
                return await asked.wait()

    async def _ask(self, resolver: Resolver, host: str) -> tuple[list[Address], float]:
        """The addresses from the settings' resolver, without a port; none: the system's resolver must be asked."""
        self.lend()
        try:
            given = await resolver(host)
            if given is None:
                return [], _FRESH
            if isinstance(given, (str, bytes)):
                raise TypeError(f"it returned {given!r}, not a collection of addresses")
            found = [address for each in given for address in literal(str(ip_address(each)), 0)]
        except (OSError, KeyboardInterrupt, SystemExit, GeneratorExit, anyio.get_cancelled_exc_class()):
            raise
        except BaseException as error:  # (pytest.fail raises no Exception)
            raise OSError(f"the resolver failed: {error!r}") from error
        if not found:
            raise OSError("the resolver gave no address")
        return found, _FRESH

    def lend(self) -> None:
        """Let this task send requests over the pool. It must be the task of a lookup."""
        if self.send is not None:
            SEND.set(self.send)

    def leave(self, host: str) -> None:
        """A dial ends that would have asked for this host next. Cancel the lookup if nobody waits for it."""
        self.finds.leave((host, 0, 0))

    async def any_address(self, host: str, port: int, families: Sequence[int]) -> None:
        """Wait until addresses of one family are known, or it is known that there are none in any."""
        async with anyio.create_task_group() as tasks:

            async def look(family: int) -> None:
                try:
                    await self.addresses(host, port, family, call_off=False)  # the dial needs it next
                except OSError:
                    return  # the dial will ask again, and raise the error
                tasks.cancel_scope.cancel()

            for family in families:
                tasks.start_soon(look, family)


async def _system(host: str, port: int, family: int) -> tuple[list[Address], float]:
    return await resolve(host, port, family), _FRESH


async def resolve(host: str, port: int, family: int) -> list[Address]:
    """Ask the system's resolver.

    :raises OSError: if the host has no address in this family, or the resolver fails.
    """
    try:
        found = await anyio.getaddrinfo(host, port, family=socket.AddressFamily(family), type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(str(error)) from error
    return [(each[0], each[4]) for each in found]


def literal(address: str, port: int) -> list[Address]:
    """The socket address of an address literal. IPv6 may have a zone.

    :raises OSError: if it is not an address, or its zone names no interface.
    """
    host, _, zone = address.partition("%")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    if not zone:
        return [(each[0], cast(SocketAddress, each[4])) for each in found]  # (typeshed has Pythons without IPv6, too)
    # (getaddrinfo knows the zones of link-local addresses, and by number those of others.)
    scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    return [(each[0], (*each[4][:3], scope)) for each in found]
