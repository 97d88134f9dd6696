"""The context of one dial, from the pool down to the last layer, as one value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from allswell._config import PoolConfig
from allswell._connection.connection import Connection, Owner
from allswell._dial.lookups import Send
from allswell._filters.interface import Filter
from allswell._filters.stack import Stack
from allswell._filters.tls import TlsFilter
from allswell._request.route import Route
from allswell._trace import Tracer

Layer = TypeVar("Layer", bound=Filter)


@dataclass(frozen=True, slots=True)
class Context:
    """The context of one dial.

    :ivar route: the destination; on the way through proxies, the next one.
    :ivar config: the pool's settings.
    :ivar owner: the owner of the new connection.
    :ivar send: sends a request on another connection of the owner: for a tunnel that the new one goes through.
    :ivar discard: ends a connection that is not wanted, with a reason.
    :ivar tracer: gets the events of each layer.
    :ivar timeout: how many seconds the caller allows, for the trace only. (The caller enforces it.)
    """

    route: Route
    config: PoolConfig
    owner: Owner
    send: Send
    discard: Callable[[Connection, str], None]
    tracer: Tracer | None = None
    timeout: float | None = None

    def towards(self, route: Route) -> Context:
        """The same dial, with another destination."""
        return replace(self, route=route)

    async def connect(self, stack: Stack[Filter]) -> None:
        """Connect every layer of a stack. See :meth:`Stack.connect`."""
        await stack.connect(self._traced if self.tracer is not None else None)

    async def push(self, stack: Stack[Filter], layer: Layer) -> Stack[Layer]:
        """Connect one more layer on top. See :meth:`Stack.push`."""
        return await stack.push(layer, self._traced if self.tracer is not None else None)

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
