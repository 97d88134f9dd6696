"""The race: the one way to try several candidates side by side: addresses, endpoints, QUIC and TCP.

The rules (RFC 8305 §5, draft-ietf-happy-happyeyeballs-v3):

- Candidates are tried in the order of their line. The next attempt begins as soon as one has failed, or 250 ms after
  the last one began, whichever comes first.
- The first that succeeds wins, and the others are cancelled. If another one succeeds all the same, it is discarded.
- The race is lost if all have failed and no more can come.
- If an attempt raises anything but a failure to connect, the race ends and raises that.

A line may grow during the race, as addresses come from a resolver (`addresses.py`). That alone begins no attempt early.
An attempt may be a race of its own: QUIC against TCP, for each the endpoints, for each endpoint the addresses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

import anyio

from allswell._deadline import Deadline
from allswell._errors import ConnectFailed

#: After so many seconds the next attempt begins (RFC 8305 §8).
CONNECTION_ATTEMPT_DELAY = 0.25

C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)
T = TypeVar("T")


class Line(Protocol[C_co]):
    """The candidates, in their order.

    :ivar growing: whether more may join it.
    """

    @property
    def growing(self) -> bool: ...

    async def only(self) -> C_co | None:
        """Take the last candidate out of the line, if no others will come.

        If there is nothing to try meanwhile, this may look for candidates itself.
        """

    def next(self) -> C_co | None:
        """Take the next candidate out of the line; ``None`` if there is none now."""

    async def begin(self, tasks: anyio.abc.TaskGroup, news: Callable[[], None]) -> None:
        """Begin to look for more candidates. Return when the first attempt may begin.

        :param tasks: the task group to look in. The attempts are in it, too.
        :param news: call this when candidates have joined, or no more will.
        """


class Listed(Generic[C]):
    """A line of candidates that are known from the start."""

    growing = False

    def __init__(self, candidates: Iterable[C]) -> None:
        self._left = deque(candidates)

    async def only(self) -> C | None:
        return self._left.popleft() if len(self._left) == 1 else None

    def next(self) -> C | None:
        return self._left.popleft() if self._left else None

    async def begin(self, tasks: anyio.abc.TaskGroup, news: Callable[[], None]) -> None:
        pass  # all are there


class Lost(Exception):
    """All attempts failed.

    :ivar failures: in the order in which they came.
    """

    def __init__(self, failures: Sequence[ConnectFailed]) -> None:
        super().__init__(failures)
        self.failures = failures


async def race(line: Line[C], attempt: Callable[[C], Awaitable[T]], discard: Callable[[T], object]) -> T:
    """Return the result of the first attempt that succeeds.

    :param attempt: connects to a candidate. It may be cancelled.
    :param discard: ends a connection that came second.
    :raises Lost: if none succeeds.
    :raises BaseException: what an attempt raises, if that is not :class:`ConnectFailed`.
    """
    only = await line.only()
    if only is not None:
        try:
            return await attempt(only)
        except ConnectFailed as error:
            raise Lost([error]) from error
    running = _Race(line, attempt, discard)
    try:
        async with anyio.create_task_group() as tasks:
            await running.run(tasks)
        if running.raised:
            raise running.raised[0]
    except BaseException:
        for made in running.won:  # here: an attempt may still succeed while the group is being cancelled
            discard(made)
        raise
    if running.won:
        return running.won[0]
    raise Lost(running.failures)


async def in_turn(candidates: Sequence[C], attempt: Callable[[C], Awaitable[T]], discard: Callable[[T], object]) -> T:
    """Race along a list, which is not empty.

    :raises ConnectFailed: the error of the last attempt, with the words of the others.
    """
    try:
        return await race(Listed(candidates), attempt, discard)
    except Lost as lost:
        *others, last = lost.failures
    if not others:
        raise last
    raise last.besides(others) from last


class _Race(Generic[C, T]):
    """A race with more than one candidate.

    :ivar won: the winner.
    :ivar raised: the error that ended it, if that is no failure to connect.
    """

    def __init__(self, line: Line[C], attempt: Callable[[C], Awaitable[T]], discard: Callable[[T], object]) -> None:
        self.won: list[T] = []
        self.raised: list[BaseException] = []
        self.failures: list[ConnectFailed] = []
        self._line = line
        self._attempt = attempt
        self._discard = discard
        self._under_way = 0
        self._news = anyio.Event()

    @property
    def _over(self) -> bool:
        return bool(self.won or self.raised)

    async def run(self, tasks: anyio.abc.TaskGroup) -> None:
        """Run until it is over. Then cancel what is under way."""
        await self._line.begin(tasks, self._tell)
        self._news = anyio.Event()  # earlier news are seen below
        while not self._over:
            if not self._under_way and (last := await self._line.only()) is not None:
                self._under_way += 1
                await self._try(last)  # it needs no task of its own
                continue
            candidate = self._line.next()
            if candidate is not None:
                self._under_way += 1
                tasks.start_soon(self._try, candidate)
                failed, delay = len(self.failures), Deadline.after(CONNECTION_ATTEMPT_DELAY)
                while len(self.failures) == failed and not self._over and not delay.passed():
                    await self._wait(delay)
            elif self._under_way or self._line.growing:
                await self._wait(Deadline())
            else:
                break
        if self._under_way or self._line.growing:
            tasks.cancel_scope.cancel()

    async def _wait(self, deadline: Deadline) -> None:
        # Each wait is for news since the last wait. News in between set the new event.
        with deadline.scope():
            await self._news.wait()
        self._news = anyio.Event()

    def _tell(self) -> None:
        self._news.set()

    async def _try(self, candidate: C) -> None:
        try:
            made = await self._attempt(candidate)
        except ConnectFailed as error:
            self.failures.append(error)
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - raised when it is over: asyncio ends its loop for what leaves a task
            self.raised.append(error)
        else:
            if self.won:
                self._discard(made)
            else:
                self.won.append(made)
        self._under_way -= 1
        self._tell()
