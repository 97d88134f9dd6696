"""Lets patches of httpx2 and httpcore2 (or httpx and httpcore) see the requests of our transports.

Theory of operation. A mock, a recorder or a tracer replaces ``AsyncHTTPTransport.handle_async_request`` for the whole
process, or the method of that name of httpcore2's pool or connection. Our transports are not subclasses of the
library's. So without this module a patch would not see them, and a test with a mock would use the real network.

- **Noticed**: before each request, the three methods are compared with the library's own
  (:meth:`Library.is_patched`). A function is the library's own if its code is from the library's file. So a patch is
  noticed even if it came before this module was imported.
- **Handed over**: if a method is patched, the library's method is called with our transport as ``self``, so the patch
  runs. If the patch lets the request pass, the library's own code asks ``self._pool``. That is a pool of the
  library's whose connections send by our transport.

Private names of httpx2 and httpcore2 are used; ``tests/client/test_httpx2_canary.py`` lists them.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

from allswell._config import ProxyHop

#: Sends a request of the core library (httpcore2 or httpcore), and returns a response of that library.
Carry = Callable[[Any], Awaitable[Any]]

_METHOD = "handle_async_request"


class _Method:
    """The method ``handle_async_request`` of a class.

    :ivar own: the class's own function, once it is known. Before that, this object, which differs from any function.
    """

    __slots__ = ("own", "owner")

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.own: object = self

    def is_own(self) -> bool:
        """Whether the present function is the class's own: its code is from the file of the class. Remember it then."""
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
    """A client library that may be patched, and the core library under it.

    :param client: httpx2 or httpx.
    :param core: the name ``httpcore2`` or ``httpcore``. It is imported only if needed, because it imports trio. (A
        program that patches it has imported it.)
    """

    def __init__(self, client: ModuleType, core: str) -> None:
        self._transport: type = client.AsyncHTTPTransport
        self._core = core
        self._core_methods: tuple[_Method, ...] = ()
        self._methods: tuple[_Method, ...] = (_Method(self._transport),)
        self._kinds: dict[str, Any] = {}

    def is_patched(self) -> bool:
        """Whether a request must be handed over: the transport or the core library is patched."""
        if not self._core_methods and self._core in sys.modules:
            core = self._core_module
            self._core_methods = (_Method(core.AsyncConnectionPool), _Method(core.AsyncHTTPConnection))
            self._methods += self._core_methods
        return _any_patched(self._methods)

    def is_core_patched(self) -> bool:
        """Whether the core library, below the transport, is patched."""
        return _any_patched(self._core_methods)

    async def hand_over(self, transport: object, request: Any) -> Any:
        """Call the library's (patched) method with our transport as ``self``. Return the library's response."""
        method = self._transport.__dict__.get(_METHOD)
        bind = getattr(method, "__get__", None)  # a mock may be an object that does not bind
        send: Any = method if bind is None else bind(transport, type(transport))
        return await send(request)

    def pool(self, carry: Carry, proxies: tuple[ProxyHop, ...]) -> Any:
        """A pool of the core library's class whose requests are sent by ``carry``.

        :param proxies: the proxies that the requests go through. The pool names the last one, because mocks look at it.
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
    """A subclass of one of the core library's pools that makes no connections: it has ``carry`` send its requests.

    Our own pool finds the real connection. So the connection here is always available, and has no state.
    """

    class Carrier(core.AsyncConnectionInterface):  # type: ignore[misc]  # the base class is known only at run time
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

    class Pool(getattr(core, name)):  # type: ignore[misc]  # the base class is known only at run time
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
