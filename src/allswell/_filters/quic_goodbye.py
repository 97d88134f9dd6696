"""How a QUIC connection ends: what was said and heard, and the closing period.

CONNECTION_CLOSE may be lost, and is never acknowledged. So it is sent three times within the first PTO of the closing
period, which takes three PTO at most. A later copy could reach a peer whose draining period is over, and cause a
stateless reset. It is also sent in answer to datagrams that still arrive: to the 1st, 2nd, 4th, 8th and so on. The
period ends early if the peer is known to have closed: by its own CONNECTION_CLOSE, a stateless reset, or an unreachable
port.
"""

from __future__ import annotations

from allswell._clock import monotonic
from allswell._deadline import Deadline
from allswell._errors import TransportError
from allswell._filters.interface import Datagrams
from allswell._filters.quic_arrivals import Arrivals
from allswell._quic.connection import ClientConnection
from allswell._quic.interface import End
from allswell._report import LayerEnd, Outcome
from allswell._tasks import TaskHost

#: How many PTO the closing period takes (RFC 9000 §10.2).
CLOSING_PROBES = 3
#: How often our CONNECTION_CLOSE is sent in the first PTO of the closing period.
_GOODBYES = 3


class Goodbye:
    """The end of one connection.

    :ivar datagrams: the datagrams of our CONNECTION_CLOSE, once it was sent.
    :ivar answered: our answer to the peer's CONNECTION_CLOSE.
    :ivar unreachable: whether the peer's port, or our socket, is closed.
    """

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []
        self.answered: End | None = None
        self.unreachable = False

    async def closing_period(
        self, connection: ClientConnection, udp: Datagrams, arrivals: Arrivals, host: TaskHost, deadline: Deadline
    ) -> bool:
        """Wait for the period's end (RFC 9000 §10.2.1). Return whether the deadline left time for it."""
        now = monotonic()
        interval = connection.probe_timeout
        end = now + CLOSING_PROBES * interval
        period = deadline.sooner(end - now)
        copies = [at for number in range(1, _GOODBYES) if (at := now + interval * number / _GOODBYES) < period.at]

        def repeat() -> None:
            udp.send(self.datagrams)
            del copies[0]

        timers = [host.call_later(at - now, repeat) for at in copies]
        arrived, answer_at = 0, 1
        try:
            with period.scope():
                while connection.heard is None:
                    if not arrivals:
                        await udp.flush()
                        await udp.wait_readable()
                        arrivals.fetch()
                    while arrivals:
                        arrivals.give(connection, monotonic(), lambda: True)
                        arrived += 1
                    if connection.heard is None and arrived >= answer_at:
                        udp.send(self.datagrams)
                        while answer_at <= arrived:
                            answer_at *= 2
                return True
            while copies:  # the event loop was late for these
                repeat()
        except TransportError:
            self.unreachable = True  # the port is closed: the peer is gone
            return True
        finally:
            for timer in timers:
                timer.cancel()
        return deadline.at >= end

    def waited(self, connection: ClientConnection) -> Outcome:
        """The outcome if we wait no longer for the answer to our goodbye."""
        return Outcome.TIMED_OUT if connection.heard is None and not self.unreachable else Outcome.CLEAN

    def aborted(self, connection: ClientConnection) -> Outcome:
        """The outcome if we said no goodbye, or not a polite one."""
        ended = connection.ended
        if ended is not None and ended.by == "peer" and ended.code is not None:
            return Outcome.PEER_FIRST
        if ended is not None and ended.by == "network":
            return Outcome.SKIPPED  # the idle timeout ends both sides without a word (RFC 9000 §10.1)
        return Outcome.ABORTED

    def report(self, name: str, connection: ClientConnection, outcome: Outcome, seconds: float) -> LayerEnd:
        """What was said and heard."""
        ended = self.answered or connection.ended
        said = str(ended) if ended is not None and ended.by == "us" and ended.code is not None else ""
        heard = str(connection.heard) if connection.heard is not None else ""
        if self.unreachable:
            heard = heard or "port unreachable"
        return LayerEnd(name, said, heard, outcome, seconds)
