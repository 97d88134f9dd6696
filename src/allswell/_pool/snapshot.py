"""The state of a pool at one instant, as data and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from allswell._connection.connection import Connection
from allswell._report import counted


@dataclass(frozen=True, slots=True)
class ConnectionSnapshot:
    """One connection.

    :ivar http_version: ``"HTTP/1.1"``, ``"HTTP/2"`` or ``"HTTP/3"``.
    :ivar state: ``"open"``, ``"draining"``, ``"closing"``.
    :ivar reason: why it is not open any more; else ``""``.
    :ivar exchanges: how many requests are under way.
    :ivar capacity: how many more could be sent now.
    :ivar opened: how many it carried in its life.
    :ivar age: seconds since it was made.
    :ivar idle: seconds since its last request ended; ``None`` while one is under way.
    :ivar serves: the other origins that it serves, besides its own.
    """

    http_version: str
    state: str
    reason: str
    exchanges: int
    capacity: int
    opened: int
    age: float
    idle: float | None
    serves: tuple[str, ...] = ()

    @classmethod
    def of(cls, connection: Connection, now: float, serves: tuple[str, ...] = ()) -> Self:
        """The snapshot of a connection, at this instant of :func:`time.monotonic`."""
        return cls(
            http_version=connection.http_version,
            state=connection.state.value,
            reason=connection.reason,
            exchanges=connection.open_exchanges,
            capacity=connection.capacity(),
            opened=connection.history.opened,
            age=now - connection.history.made_at,
            idle=None if connection.open_exchanges else now - connection.idle_since,
            serves=serves,
        )

    def __str__(self) -> str:
        told = f"{self.exchanges} under way, room for {self.capacity}, {self.opened} in all, {self.age:.1f} s old"
        idle = f", idle for {self.idle:.1f} s" if self.idle is not None else ""
        reason = f" ({self.reason})" if self.reason else ""
        others = f"; also for {', '.join(self.serves)}" if self.serves else ""
        return f"{self.http_version:<8}  {self.state:<8}  {told}{idle}{reason}{others}"


@dataclass(frozen=True, slots=True)
class RouteSnapshot:
    """The connections, dials and waiting requests of one route.

    :ivar route: its name in errors and reports: ``"https://example.org"``, and the proxies on the way.
    :ivar connections: the connections made for it that are not closed yet, oldest first. Those that say goodbye count.
    :ivar dials: how many connections are being made.
    :ivar waiting: how many requests wait for room.
    """

    route: str
    connections: tuple[ConnectionSnapshot, ...]
    dials: int
    waiting: int

    def __str__(self) -> str:
        connections, dials = counted(len(self.connections), "connection"), counted(self.dials, "dial")
        lines = [f"{self.route}: {connections}, {dials}, {self.waiting} waiting"]
        return "\n  ".join([*lines, *map(str, self.connections)])


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """A pool at one instant. ``str`` makes a table of it.

    :ivar state: ``"open"``, ``"closing"`` or ``"closed"``.
    :ivar users: clients that share it.
    :ivar routes: the routes that have a connection, a dial, or a waiting request.
    """

    state: str
    users: int
    routes: tuple[RouteSnapshot, ...]

    @property
    def connections(self) -> int:
        """How many connections there are in all that are not closed yet."""
        return sum(len(route.connections) for route in self.routes)

    @property
    def exchanges(self) -> int:
        """How many requests are under way."""
        return sum(each.exchanges for route in self.routes for each in route.connections)

    @property
    def dials(self) -> int:
        """How many connections are being made."""
        return sum(route.dials for route in self.routes)

    @property
    def waiting(self) -> int:
        """How many requests wait for room."""
        return sum(route.waiting for route in self.routes)

    def as_dict(self) -> dict[str, Any]:
        """All of it, with the totals, as ``json.dumps`` takes it: for a health page."""
        totals = {name: getattr(self, name) for name in ("connections", "exchanges", "dials", "waiting")}
        return {**asdict(self), "totals": totals}

    def __str__(self) -> str:
        told = (
            f"pool {self.state}, {counted(self.users, 'user')}: {counted(self.connections, 'connection')}, "
            f"{counted(self.exchanges, 'exchange')}, {counted(self.dials, 'dial')}, {self.waiting} waiting"
        )
        return "\n".join([told, *map(str, self.routes)])
