"""What others have patched of httpx2 and httpcore2 (or httpx and httpcore) for the whole process, and their way to us.

Theory of operation. A mock, a recorder or a tracer puts a function of its own in the place of the library's
``AsyncHTTPTransport.handle_async_request``, or of its counterpart in the pool or the connection below. Our transports
are no subclasses of the library's, so such a patch would not see them: a test would go to the real network.

- **Seen**: before each request, by one look at each of the three (:meth:`Library.is_patched`). A function is the
  library's own if its code is from the library's file, however early the patch came.
- **Handed over**: if one is not, the library's method is called with our transport as ``self``, and the patch runs.
  What it lets pass comes to the library's own code, which asks ``self._pool``: that is a pool of the library's, whose
  connections end in our transport.

Private names of httpx2 and httpcore2 are used; ``tests/client/test_httpx2_canary.py`` lists them.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

from allswell._config import ProxyHop

#: Sends a request of the core library (httpcore2, httpcore), and returns a response of it.
Carry = Callable[[Any], Awaitable[Any]]

_METHOD = "handle_async_request"


class _Method:
    """That method of a class.

    :ivar own: it, if it is the class's own, once that was found out.
    """

    __slots__ = ("own", "owner")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.own: object = self

    def is_own(self) -> bool:
        """Find it out: is its code from the file that its class is from?"""
        found = vars(self.owner).get(_METHOD)
        beside = getattr(self.owner.__init__, "__code__", None)
        if type(found) is not FunctionType or beside is None or found.__code__.co_filename != beside.co_filename:
            return False
        self.own = found
        return True


def _any_patched(methods: tuple[_Method, ...]) -> bool:
    for method in methods:  # noqa: SIM110  # before every request
        if method.owner.handle_async_request is not method.own and not method.is_own():
            return True
    return False


class Library:
    """A client library that is patched at times, and the core library under it.

    :param client: httpx2, or httpx.
    :param core: the name of httpcore2, or httpcore. (Who patches it has imported it. We do so late: it brings trio.)
    """

    def __init__(self, client: ModuleType, core: str) -> None:
        self._transport: type = client.AsyncHTTPTransport
        self._core = core
        self._core_methods: tuple[_Method, ...] = ()
        self._methods: tuple[_Method, ...] = (_Method(self._transport),)
        self._kinds: dict[str, Any] = {}

    def is_patched(self) -> bool:
        """Whether a request must be handed over."""
        if not self._core_methods and self._core in sys.modules:
            core = self._core_module
            self._core_methods = (_Method(core.AsyncConnectionPool), _Method(core.AsyncHTTPConnection))
            self._methods += self._core_methods
        return _any_patched(self._methods)

    def is_core_patched(self) -> bool:
        """Whether it is patched below the transport."""
        return _any_patched(self._core_methods)

    async def hand_over(self, transport: object, request: Any) -> Any:
        """Send a request as the library's own transport would, with this one in its place; the library's response."""
        method = self._transport.__dict__.get(_METHOD)
        bind = getattr(method, "__get__", None)  # a mock may be none that binds
        send: Any = method if bind is None else bind(transport, type(transport))
        return await send(request)

    def pool(self, carry: Carry, proxies: tuple[ProxyHop, ...]) -> Any:
        """A pool of the core library's whose requests are carried by us.

        :param proxies: what they go through: mocks look at the last of them.
        """
        hop = proxies[-1] if proxies else None
        if hop is None or hop.scheme not in ("http", "https"):
            made = self._kind("AsyncConnectionPool")()
        else:
            url = self._core_module.URL(scheme=hop.scheme, host=hop.host, port=hop.port, target="/")
            auth = hop.auth if isinstance(hop.auth, tuple) else None
            made = self._kind("AsyncHTTPProxy")(url, auth, list(hop.headers))
        made.carry = carry
        return made

    @property
    def _core_module(self) -> Any:
        return import_module(self._core)

    def _kind(self, name: str) -> Any:
        if name not in self._kinds:
            self._kinds[name] = _carried(self._core_module, name, self)
        return self._kinds[name]


def _carried(core: Any, name: str, library: Library) -> type:
    """A class of pools of the core library's, that dial nothing: their requests are carried.

    What they need is ours to find, so a connection of theirs is always there, and has no state.
    """

    class Carrier(core.AsyncConnectionInterface):  # type: ignore[misc]  # its base is found late
        def __init__(self, carry: Carry) -> None:
            self._carry = carry

        async def handle_async_request(self, request: Any) -> Any:
            return await self._carry(request)

        async def aclose(self) -> None:
            pass

        def info(self) -> str:
            return "allswell"

        def can_handle_request(self, origin: object) -> bool:
            return True

        def can_multiplex(self) -> bool:
            return True

        def is_available(self) -> bool:
            return True

        def has_expired(self) -> bool:
            return False

        def is_idle(self) -> bool:
            return True

        def is_closed(self) -> bool:
            return False

    class Pool(getattr(core, name)):  # type: ignore[misc]  # its base is found late
        carry: Carry

        def create_connection(self, origin: Any) -> Any:
            made = core.AsyncHTTPConnection(origin)
            made._connection = Carrier(self.carry)
            return made

        async def handle_async_request(self, request: Any) -> Any:
            if library.is_core_patched():
                return await super().handle_async_request(request)
            return await self.carry(request)  # without the library's bookkeeping

    return Pool
