"""Happy Eyeballs v2 (RFC 8305): the first connection, TCP or other, that any of a host's addresses gives.

Theory of operation. AAAA and A are asked for side by side (§3). Attempts begin with the first answer; when that is A,
AAAA gets 50 ms more to be first after all. Addresses are tried alternating between the families, in the resolver's
order within each (§4); an attempt starts when the one before has failed, or 250 ms after it began (§5). The first
that connects wins; the others are closed. When nothing is left to try and nothing is under way, the error tells
what each address said. At most 16 addresses of each family are tried: a DNS answer could otherwise have
us connect to thousands.

Where DNS gave hints of the addresses (RFC 9460 §7.3), they stand in for what the resolver has not answered after 50 ms,
or not at all; once it answers, its word counts, and it has its 16 attempts.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Generic, Literal, TypeVar

import anyio

from allswell._addresses import AllowAddress, check_contact
from allswell._config import SocketOption
from allswell._deadline import Deadline
from allswell._dial.lookups import Address, Resolve, literal, resolve
from allswell._errors import AddressNotAllowed, ConnectFailed

#: RFC 8305 §8.
RESOLUTION_DELAY = 0.05
CONNECTION_ATTEMPT_DELAY = 0.25
#: Addresses of one family that are tried.
ATTEMPTS = 16

#: Of ``connect``: it has begun. (On Linux EWOULDBLOCK is EAGAIN: nothing has begun. On Windows the two differ.)
_UNDER_WAY = {errno.EINPROGRESS, errno.EWOULDBLOCK} - {errno.EAGAIN}
#: Seconds until a Unix socket whose backlog was full is tried again: at first, and at most.
_BACKLOG_DELAY, _BACKLOG_DELAY_MAX = 0.001, 0.064
#: From linux/in.h; the socket module names it since Python 3.12.
_IP_BIND_ADDRESS_NO_PORT = 24

T = TypeVar("T")


async def connect_tcp(
    host: str,
    port: int,
    *,
    local_address: str | None = None,
    options: Sequence[SocketOption] = (),
    hints: Sequence[str] = (),
    ask: Resolve = resolve,
    allow: AllowAddress | None = None,
) -> socket.socket:
    """A connected, non-blocking TCP socket to one of the host's addresses. Parameters as for :func:`connect_any`.

    :raises ConnectFailed: naming the host, and every address that was tried with its error.
    """

    async def attempt(address: Address) -> socket.socket:
        return await _connect(*address, local_address, options)

    return await connect_any(
        host, port, attempt, socket.socket.close, local_address=local_address, hints=hints, ask=ask, allow=allow
    )


async def connect_any(
    host: str,
    port: int,
    attempt: Callable[[Address], Awaitable[T]],
    discard: Callable[[T], object],
    *,
    local_address: str | None = None,
    hints: Sequence[str] = (),
    ask: Resolve = resolve,
    allow: AllowAddress | None = None,
    transport: Literal["tcp", "udp"] = "tcp",
) -> T:
    """What the first attempt that succeeds returns.

    :param attempt: connects to one address; raises ``OSError`` or :class:`ConnectFailed`; may be cancelled.
    :param discard: ends a connection that came second.
    :param local_address: where the attempts come from: only addresses of its family are tried.
    :param hints: addresses to begin with while the resolver says nothing.
    :param ask: the resolver.
    :param allow: which addresses may be tried; see ``PoolConfig``.
    :param transport: what they are tried over, for ``allow``.
    :raises ConnectFailed: naming the host, and every address that was tried with its error.
    :raises AddressNotAllowed: where no other address was tried.
    :raises BaseException: whatever else an attempt raises, which ends the race.
    """

    async def allowed(address: Address) -> T:
        check_contact(allow, host, address[1], transport)
        return await attempt(address)

    race = _Race(host, port, allowed, discard, local_address, hints, ask)
    try:
        async with anyio.create_task_group() as tasks:
            await race.run(tasks)
            tasks.cancel_scope.cancel()
        if race.raised is not None:
            raise race.raised
    except BaseException:
        race.give_up()  # here: an attempt may still succeed while the group is being cancelled
        raise
    return race.result()


async def connect_unix(path: str, *, options: Sequence[SocketOption] = ()) -> socket.socket:
    """A connected, non-blocking Unix domain socket.

    :raises ConnectFailed: naming the path.
    """
    try:
        if not hasattr(socket, "AF_UNIX"):  # Windows
            raise OSError(errno.EAFNOSUPPORT, "this system has none that Python can use")
        return await _connect(socket.AF_UNIX, path, None, options)
    except OSError as error:
        raise ConnectFailed(f"cannot connect to the Unix socket {path}: {_words(error)}", phase="tcp") from error


async def staggered(attempts: Sequence[Callable[[], Awaitable[T]]], discard: Callable[[T], object]) -> T:
    """What the first attempt that succeeds returns. Each begins when the one before failed, or 250 ms after it began.

    :param attempts: at least one.
    :param discard: ends a connection that came second.
    :raises ConnectFailed: the last attempt's, with what the others said.
    :raises BaseException: whatever else one of them raises, which ends the race.
    """
    if len(attempts) == 1:
        return await attempts[0]()
    winner: list[T] = []
    errors: list[ConnectFailed] = []
    raised: list[BaseException] = []
    settled = [anyio.Event() for _ in attempts]

    async def run(attempt: Callable[[], Awaitable[T]], over: anyio.Event) -> None:
        try:
            made = await attempt()
        except ConnectFailed as error:
            errors.append(error)
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - raised below: asyncio ends its loop for what leaves a task
            raised.append(error)
            tasks.cancel_scope.cancel()
        else:
            if winner:
                discard(made)
            else:
                winner.append(made)
                tasks.cancel_scope.cancel()
        over.set()

    try:
        async with anyio.create_task_group() as tasks:
            for attempt, over in zip(attempts, settled, strict=True):
                tasks.start_soon(run, attempt, over)
                with Deadline.after(CONNECTION_ATTEMPT_DELAY).scope():
                    await over.wait()
        if raised:
            raise raised[0]
    except BaseException:
        for made in winner:
            discard(made)
        raise
    if winner:
        return winner[0]
    *others, last = errors
    raise last.besides(others) from last


class _Race(Generic[T]):
    def __init__(
        self,
        host: str,
        port: int,
        attempt: Callable[[Address], Awaitable[T]],
        discard: Callable[[T], object],
        local_address: str | None,
        hints: Sequence[str],
        ask: Resolve,
    ) -> None:
        self._host = host
        self._port = port
        self._connect = attempt
        self._discard = discard
        self._local_address = local_address
        self._hints = hints
        self._ask = ask
        self._tried: set[Any] = set()
        self._tries: Counter[int] = Counter()
        self._news = anyio.Event()
        self._resolving = 0
        self._trying = 0
        self._found: dict[int, list[Address]] = {socket.AF_INET6: [], socket.AF_INET: []}
        self._prefer = socket.AF_INET6
        self._winner: T | None = None
        self.raised: BaseException | None = None
        self._dns_errors: list[OSError] = []
        self._errors: list[tuple[str, OSError | ConnectFailed]] = []

    async def run(self, tasks: anyio.abc.TaskGroup) -> None:
        wanted = families(self._host, self._local_address)
        if not wanted:
            try:
                self._take(literal(self._host, self._port))
            except OSError as error:  # its zone names no interface
                self._dns_errors.append(error)
        for family in wanted:
            self._resolving += 1
            tasks.start_soon(self._resolve, family)
        patience = Deadline.after(RESOLUTION_DELAY if self._hints else None)
        while self._resolving and self._resolving == len(wanted) and not patience.passed():
            await self._wait(patience.left())
        if self._resolving and not self._found[socket.AF_INET6] and not patience.passed():
            await self._wait(RESOLUTION_DELAY)
        if not any(self._found.values()):
            self._take_hints()
        while self._winner is None and self.raised is None:
            address = self._next()
            if address is not None:
                self._trying += 1
                tasks.start_soon(self._attempt, address)
                await self._wait(CONNECTION_ATTEMPT_DELAY)
            elif self._trying or self._resolving:
                await self._wait(None)
            else:
                return

    def give_up(self) -> None:
        """The race was called off: nobody will take the winner."""
        if self._winner is not None:
            self._discard(self._winner)

    def result(self) -> T:
        if self._winner is not None:
            return self._winner
        where = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        if self._errors:
            errors = [error for _, error in self._errors]
            tried = [error for error in errors if not isinstance(error, AddressNotAllowed)]
            last = (tried or errors)[-1]
            if isinstance(last, ConnectFailed):
                raise last  # it names the peer and what it did; so did those of the other addresses
            told = "; ".join(f"{address}: {_words(error)}" for address, error in self._errors)
            if any(self._found.values()):
                told += "; its other addresses were not tried"
            raise ConnectFailed(f"cannot connect to {where}: {told}", phase="tcp") from last
        cause = self._dns_errors[-1] if self._dns_errors else None
        told = _words(cause) if cause else "it has no address of the local address's family"
        raise ConnectFailed(f"cannot resolve {self._host}: {told}", phase="dns") from cause

    def _take(self, found: Sequence[Address]) -> None:
        """The resolver's answer: it takes the place of hints that have not been tried."""
        for family in {family for family, _ in found}:
            fresh = (each for each in found if each[0] == family and each[1] not in self._tried)
            self._found[family] = list(dict.fromkeys(fresh))
            self._tries[family] = 0  # those of hints do not count against it

    def _take_hints(self) -> None:
        own = _family(self._local_address) if self._local_address is not None else None
        for family in (socket.AF_INET6, socket.AF_INET):
            if own in (None, family):
                hints = [each for each in self._hints if _family(each) == family]
                self._found[family] = [address for each in hints for address in literal(each, self._port)]

    async def _wait(self, seconds: float | None) -> None:
        # Each wait is for the news since the last one: what comes in between sets the fresh event.
        with Deadline.after(seconds).scope():
            await self._news.wait()
        self._news = anyio.Event()

    async def _resolve(self, family: int) -> None:
        try:
            self._take(await self._ask(self._host, self._port, family))
        except OSError as error:
            self._dns_errors.append(error)
        self._resolving -= 1
        self._news.set()

    def _next(self) -> Address | None:
        for family in (self._prefer, socket.AF_INET if self._prefer == socket.AF_INET6 else socket.AF_INET6):
            if self._found[family] and self._tries[family] < ATTEMPTS:
                self._tries[family] += 1
                self._prefer = socket.AF_INET if family == socket.AF_INET6 else socket.AF_INET6
                address = self._found[family].pop(0)
                self._tried.add(address[1])
                return address
        return None

    async def _attempt(self, address: Address) -> None:
        try:
            connection = await self._connect(address)
        except (OSError, ConnectFailed) as error:
            self._errors.append((str(address[1][0]), error))
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - raised when the race is over: see :func:`staggered`
            self.raised = error
        else:
            if self._winner is None:
                self._winner = connection
            else:
                self._discard(connection)
        self._trying -= 1
        self._news.set()


async def _connect(
    family: int, sockaddr: Any, local_address: str | None, options: Sequence[SocketOption]
) -> socket.socket:
    internet = family in (socket.AF_INET, socket.AF_INET6)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if internet:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in options:
            sock.setsockopt(*option)
        if local_address is not None:
            if sys.platform == "linux":
                # The port is chosen by connect, which knows both ends: connections to other servers may share it.
                with suppress(OSError):  # kernels before 4.2
                    sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((local_address, 0))
        code = sock.connect_ex(sockaddr)
        delay = _BACKLOG_DELAY
        while code == errno.EAGAIN and not internet:  # the backlog is full, and nothing tells when it no longer is
            await anyio.sleep(delay)
            delay = min(2 * delay, _BACKLOG_DELAY_MAX)
            code = sock.connect_ex(sockaddr)
        if code in _UNDER_WAY:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, _told(code))
    except BaseException:
        sock.close()
        raise
    return sock


def families(host: str, local_address: str | None) -> list[int]:
    """What to ask the resolver for; nothing for an address literal."""
    if _family(host) is not None:
        return []
    if local_address is not None and (family := _family(local_address)) is not None:
        return [family]
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        # RFC 6761 §6.3: the hosts file has it, perhaps in one family; the other is nothing to ask a server for.
        return [socket.AF_UNSPEC]
    return [socket.AF_INET6, socket.AF_INET]


def is_address(host: str) -> bool:
    """Whether it is an address literal rather than a name."""
    return _family(host) is not None


def _family(host: str) -> int | None:
    """The family of an address literal; ``None`` for a name."""
    try:
        version = ip_address(host.partition("%")[0]).version
    except ValueError:
        return None
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def _told(code: int) -> str:
    # (The C library of Windows has no words for the errors of its sockets; the socket module has.)
    words: dict[int, str] = getattr(socket, "errorTab", {})
    return words.get(code) or os.strerror(code)


def _words(error: OSError | ConnectFailed) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
