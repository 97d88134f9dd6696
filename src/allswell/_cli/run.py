"""The whole command: one client for all URLs, signals, and what is written at the end.

The first SIGINT or SIGTERM ends the transfers, and the connections say goodbye. The second one ends that, too.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import current_thread, main_thread

import anyio
from anyio.abc import TaskStatus

from allswell._cli.arguments import Asked, parse
from allswell._cli.client import CommandClient
from allswell._cli.cookies import jar, save
from allswell._cli.exits import Exit, Failed
from allswell._cli.output import say, silence
from allswell._cli.progress import Meters
from allswell._cli.transfer import Transfer
from allswell._report import CloseReport, ConnectionEnd
from allswell._signals import receive_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit status."""
    try:
        asked = parse(sys.argv[1:] if arguments is None else arguments)
        if asked.said is not None:
            print(asked.said)
            return Exit.OK
        return anyio.run(_run, asked)
    except Failed as error:
        more = "\nallswell --help lists the options" if error.code is Exit.USAGE else ""
        say(f"allswell: {error}{more}")
        return int(error.code)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


async def _run(asked: Asked) -> int:
    return await _Command(asked).run()


@contextmanager
def _recording(client: CommandClient, path: str | None) -> Iterator[None]:
    """Record all requests, and how the connections end, if ``--har`` asks for it.

    :raises Failed: if the file cannot be written.
    """
    try:
        with client.har(path) if path is not None else nullcontext():
            yield
    except OSError as error:
        raise Failed(Exit.WRITE, f"cannot write {path}: {error.strerror or error}") from error


class _Command:
    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._work = anyio.CancelScope()
        self._signal: signal.Signals | None = None
        self._codes: list[Exit] = []

    async def run(self) -> int:
        asked = self._asked
        ends: list[ConnectionEnd] = []
        cookies, literal = jar(asked.cookies, junk_session=asked.junk_session, wanted=asked.cookie_jar is not None)
        client = CommandClient(asked, cookies, literal, ends)
        meters = Meters(asked)
        with _recording(client, asked.har):
            async with anyio.create_task_group() as tasks:
                if current_thread() is main_thread():
                    await tasks.start(self._watch, tasks.cancel_scope)
                async with client:
                    with self._work:
                        await self._transfers(client, meters)
                    meters.stop()
                tasks.cancel_scope.cancel()
        client.dump.close()
        if asked.ends:
            seconds = client.close_report.seconds if client.close_report is not None else 0.0
            # (The client's report does not have the connections that ended before the close. This one does.)
            say(str(CloseReport(tuple(ends), asked.grace, seconds)))
        if asked.cookie_jar is not None and (shown := save(cookies, asked.cookie_jar)) is not None:
            sys.stdout.write(shown)
        if self._signal is not None:
            return 128 + self._signal
        return next((int(code) for code in reversed(self._codes) if code is not Exit.OK), 0)

    async def _watch(self, everything: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        with receive_signals(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for caught in signals:
                if self._signal is None:
                    self._signal = caught
                    self._work.cancel()
                else:
                    everything.cancel()

    async def _transfers(self, client: CommandClient, meters: Meters) -> None:
        asked = self._asked
        transfers = [Transfer(asked, client, url, index, meters) for index, url in enumerate(asked.urls)]
        if not asked.parallel:
            for each in transfers:
                if not await self._transfer(each):
                    return
            return
        limiter = anyio.CapacityLimiter(max(1, int(asked.parallel_max)))
        async with anyio.create_task_group() as tasks:

            async def one(each: Transfer) -> None:
                async with limiter:
                    if not await self._transfer(each):
                        tasks.cancel_scope.cancel()

            for each in transfers:
                tasks.start_soon(one, each)

    async def _transfer(self, each: Transfer) -> bool:
        """Make one transfer. Return whether to go on with the next."""
        try:
            code = await each.run()
        except BrokenPipeError:  # the output of -w has no reader
            silence(sys.stdout)
            code = Exit.WRITE
        self._codes.append(code)
        return code is Exit.OK or not self._asked.fail_early
