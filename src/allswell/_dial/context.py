"""The context of one dial, from the pool down to the last layer, as one value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from allswell._clock import monotonic
from allswell._config import PoolConfig
from allswell._connection.connection import Connection, Owner
from allswell._dial.lookups import Address, Resolve, Send
from allswell._errors import Phase
from allswell._events import Peer, PhaseEnded, next_number
from allswell._filters.interface import Filter
from allswell._filters.stack import Stack
from allswell._filters.tls import TlsFilter
from allswell._observers import Observers
from allswell._request.route import Route
from allswell._trace import Tracer

Layer = TypeVar("Layer", bound=Filter)

#: The layers whose set-up is a phase. (For TCP, and for QUIC on UDP, each attempt at an address is a phase.)
_PHASES: dict[str, Phase] = {
    "tls": "tls",
    "quic": "quic",
    "http-connect": "proxy",
    "socks5": "proxy",
    "socks5-udp": "proxy",
    "connect-udp": "proxy",
}


@dataclass(slots=True, eq=False, repr=False)
class Context:
    """The context of one dial.

    :ivar route: the destination. On the way through proxies this is the next stop.
    :ivar config: the pool's settings.
    :ivar owner: the owner of the new connection.
    :ivar send: sends a request on another connection of the owner: for a tunnel that the new one goes through.
    :ivar discard: ends a connection that is not wanted, with a reason.
    :ivar tracer: gets the events of each layer.
    :ivar timeout: how many seconds the caller allows. It is only for the trace, because the caller enforces it.
    :ivar observers: get an event for each phase; ``None`` if there are none.
    :ivar number: the number of the new connection.
    """

    route: Route
    config: PoolConfig
    owner: Owner
    send: Send
    discard: Callable[[Connection, str], None]
    tracer: Tracer | None = None
    timeout: float | None = None
    observers: Observers | None = None
    number: int = field(default_factory=next_number)

    def towards(self, route: Route) -> Context:
        """The same dial, with another destination."""
        return replace(self, route=route)

    async def connect(self, stack: Stack[Filter]) -> None:
        """Connect every layer of a stack. See :meth:`Stack.connect`."""
        await stack.connect(self._traced if self.tracer is not None else None)

    async def push(self, stack: Stack[Filter], layer: Layer) -> Stack[Layer]:
        """Connect one more layer on top. See :meth:`Stack.push`."""
        around = self._traced if self.tracer is not None else None
        phase = _PHASES.get(layer.name)
        if phase is None:
            return await stack.push(layer, around)
        with self.phase(phase, self._subject(phase)):
            return await stack.push(layer, around)

    def second(self) -> Context:
        """The same dial, for a connection that came second, with a number of its own."""
        return replace(self, number=next_number())

    def phase(self, phase: Phase, subject: Peer) -> AbstractContextManager[list[str]]:
        """A phase of this dial. The observers get an event when it is over.

        :return: a list for the addresses that it finds.
        """
        return nullcontext([]) if self.observers is None else self._told(self.observers, phase, subject)

    @contextmanager
    def _told(self, observers: Observers, phase: Phase, subject: Peer) -> Iterator[list[str]]:
        found: list[str] = []
        began, raised = monotonic(), None
        try:
            yield found
        except BaseException as error:
            raised = error
            raise
        finally:
            seconds = monotonic() - began
            observers.tell(PhaseEnded(self.number, phase, subject, began, seconds, raised, tuple(found)))

    def connecting(self, phase: Phase, address: Address) -> AbstractContextManager[object]:
        """A phase that connects to one address."""
        return self.phase(phase, address[1][:2])

    def asking(self, ask: Resolve) -> Resolve:
        """The same resolver, with a phase for each lookup."""
        if self.observers is None:
            return ask

        async def asking(host: str, port: int, family: int) -> Sequence[Address]:
            with self.phase("dns", host) as found:
                addresses = await ask(host, port, family)
                found += [str(address[0]) for _, address in addresses]
            return addresses

        return asking

    def _subject(self, phase: Phase) -> Peer:
        route = self.route
        if phase == "proxy":
            return str(route.proxies[-1])
        return route.tls_name if phase == "tls" else (route.host, route.port)

    async def _traced(self, layer: Filter, step: Callable[[], Awaitable[None]]) -> None:
        """A layer's ``connect``, between the trace events that httpx2 documents for it."""
        assert self.tracer is not None
        name, info = self._event(layer)
        info["timeout"] = self.timeout
        self.tracer.note(f"{name}.started", info)
        try:
            await step()
        except BaseException as error:
            self.tracer.note(f"{name}.failed", {"exception": error})
            raise
        self.tracer.note(f"{name}.complete", {"return_value": layer})

    def _event(self, layer: Filter) -> tuple[str, dict[str, Any]]:
        config, route = self.config, self.route
        options = {"socket_options": config.socket_options or None}
        if layer.name == "tcp" and config.uds is not None:
            return "connect_unix_socket", {"path": config.uds, **options}
        if layer.name in ("tcp", "udp"):
            near = route.proxies[0] if route.proxies else route
            to = {"host": near.host, "port": near.port, "local_address": config.local_address}
            return f"connect_{layer.name}", {**to, **options}
        if isinstance(layer, TlsFilter):
            return "start_tls", {"ssl_context": layer.context, "server_hostname": route.tls_name}
        if layer.name == "quic":
            return "connect_quic", {"server_hostname": route.tls_name}
        return "connect_via_proxy", {"layer": layer.name}
