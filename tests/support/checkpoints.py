"""Cancellation at every checkpoint, one after the other: enumerated, not sampled.

An operation's checkpoints are the places where its task waits, so where its coroutine yields to the event loop.
:func:`cancelled_at` counts them from outside and cancels at one::

    for number in count():
        if not await cancelled_at(number, operation()):
            break  # it was over before it had waited so often

A wait can be cancelled as it begins, or (on asyncio, by ``Task.cancel``) when it is over and what it waited for is
there, but the task has not run yet: then the result is lost with the cancellation. ``late`` is the latter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import anyio


class _Steps:
    """Awaits a coroutine, and calls ``function`` with what its task is about to wait for, the ``number``-th time."""

    def __init__(self, operation: Coroutine[Any, Any, None], number: int, function: Callable[[Any], None]) -> None:
        self._operation, self._number, self._function = operation, number, function
        self.reached = False

    def __await__(self) -> Generator[Any, Any, None]:
        count = 0
        send: Callable[[Any], Any] = self._operation.send
        value: Any = None
        while True:
            try:
                asked = send(value)
            except StopIteration:
                return
            if count == self._number:
                self.reached = True
                self._function(asked)
            count += 1
            try:
                send, value = self._operation.send, (yield asked)
            except BaseException as error:  # noqa: BLE001  it is passed on
                send, value = self._operation.throw, error


async def cancelled_at(number: int, operation: Coroutine[Any, Any, None], *, late: bool = False) -> bool:
    """Run it and cancel it where it waits for that time (counted from 0); whether it got so far.

    It may be complete all the same, where the wait was shielded or what it waited for came at that moment.
    """
    if not late:
        with anyio.CancelScope() as scope:
            steps = _Steps(operation, number, lambda _: scope.cancel())
            await steps
        return steps.reached

    async def run() -> None:
        await steps

    def cancel(asked: Any) -> None:
        if isinstance(asked, asyncio.Future):
            asked.add_done_callback(lambda _: task.cancel())  # before the task's own, which resumes it
        else:
            asyncio.get_running_loop().call_soon(task.cancel)

    steps = _Steps(operation, number, cancel)
    task = asyncio.get_running_loop().create_task(run())
    try:
        await task
    except asyncio.CancelledError:
        assert task.cancelled()
    return steps.reached
