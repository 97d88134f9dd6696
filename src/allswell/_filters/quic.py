"""The QUIC filter: a connection on a UDP filter, driven in batches, and ended so that the peer learns of it.

Theory of operation. :class:`~allswell._quic.connection.ClientConnection` is sans-IO. Three things move it:

- *Input.* :meth:`QuicFilter.receive_nowait` feeds it some datagrams and returns their events. It sends nothing, so one
  flush answers all of them.
- *Output.* :meth:`QuicFilter.transmit`, which any task may call, builds the datagrams that may go and sends them.
- *Time.* Acknowledgements that are due, probes, pacing, the idle timeout. There is one
  :class:`~allswell._tasks.Alarm`, and every transmission sets it anew, which costs a comparison. When it rings, a
  callback of the event loop serves the timers and sends at once, without a task switch.

The alarm wakes the connection's reader only if that has something to learn: the connection is over, the peer has
fallen silent, the handshake goes on, or the socket is full.

How it ends (RFC 9000 §10.2). :meth:`QuicFilter.shutdown` sends CONNECTION_CLOSE and enters the closing period
(`quic_goodbye.py`). If the peer closes first, one CONNECTION_CLOSE answers it (§10.2.2), and nothing more is sent,
whatever comes.

Pieces of the filter have files of their own: datagrams that wait to be parsed (`quic_arrivals.py`), PINGs
(`quic_pings.py`), and the server's preferred address (`quic_preferred.py`).
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel

from allswell._clock import monotonic
from allswell._deadline import Deadline
from allswell._errors import ConnectFailed, TransportError
from allswell._filters.certificates import PeerCertificate, strict
from allswell._filters.interface import Carrier, Datagrams
from allswell._filters.keylog import KeyLog, open_log
from allswell._filters.quic_arrivals import Arrivals
from allswell._filters.quic_goodbye import CLOSING_PROBES, Goodbye
from allswell._filters.quic_pings import Pings
from allswell._filters.quic_preferred import PreferredAddress
from allswell._quic.connection import ClientConnection, handshake_error, new_connection
from allswell._quic.ecn import ECT_0, NOT_ECT
from allswell._quic.interface import End, Progress, QuicEvent
from allswell._quic.qlog import Qlog
from allswell._quic.settings import QuicSettings
from allswell._report import LayerEnd, Outcome
from allswell._tasks import Alarm, TaskHost, current_host, weak_method

#: RFC 9114 §8.1. An aborted transfer must not look like a completed one, so abort() says this and never NO_ERROR.
H3_REQUEST_CANCELLED = 0x10C
#: How many seconds the end of the handshake waits for the first request. The two go in one datagram.
_HOLD = 0.005
#: If a timer is served later than by so many seconds, the program has held the event loop.
_LATE = 0.005


class QuicFilter(Carrier[list[QuicEvent]]):
    """A QUIC connection.

    :param udp: carries its datagrams.
    :param settings: see :class:`QuicSettings`.
    :param host: the event loop; ``None``: the one in which it connects.
    :ivar connection: the sans-IO connection, for the backend on top. :meth:`connect` makes it.
    """

    name = "quic"
    connection: ClientConnection

    def __init__(self, udp: Datagrams, settings: QuicSettings, host: TaskHost | None = None) -> None:
        self._udp = udp
        self._settings = settings
        self._host = host
        self._alarm: Alarm | None = None
        self._listener: Callable[[], None] | None = None
        self._alive = False
        self._strict = False  # whether the certificate is verified, with the name
        self._kept: list[QuicEvent] = []
        self._turn_ends = False
        self._leaving = False  # whether the goodbye follows, and with it acknowledgements and credit
        self._held = False  # whether the end of the handshake waits for the first request
        self._left_over = False  # whether the connection has yet to be told that the socket is full
        self._waiting: anyio.CancelScope | None = None
        self._lost: TransportError | None = None  # raised by every read: the system reports it once
        self._early = False
        self._keylog: KeyLog | None = None
        self._end: LayerEnd | None = None
        self._arrivals = Arrivals(udp)
        self._pings = Pings(settings.keepalive)
        self._preferred = PreferredAddress(udp)
        self._goodbye = Goodbye()

    # Connecting

    async def connect(self) -> None:
        """Shake hands. With 0-RTT only begin: the first requests go before the handshake is complete."""
        self._host = self._host or current_host()
        self._alarm = Alarm(self._host, weak_method(self._ring))
        # With 0-RTT nothing waits for the answer, so there is no second try with more groups.
        self._begin(all_groups=self._settings.early_data)
        server = self._settings.server
        try:
            while True:
                if self._udp.obstacle is not None and not self._kept:
                    raise self._obstructed(self._udp.obstacle)
                if self._early:
                    return
                await self._wait()
                self._kept += self._receive() or ()
                connection = self.connection
                if connection.handshake_complete and connection.ended is None:
                    self._held = True
                    self._alarm.set(monotonic() + _HOLD)
                    return
                self._send()
                if connection.lacked_a_group:
                    self._begin(all_groups=True)
                elif connection.ended is not None:
                    raise handshake_error(connection, server or self._settings.server_name)
        except TransportError as error:
            raise ConnectFailed(f"no QUIC connection to {server}: {error}", phase="quic", by=error.by) from error

    def _begin(self, *, all_groups: bool) -> None:
        """Make the connection, or a new one in its place, and send its first flight."""
        settings = self._settings
        self._strict = strict(settings.trust)
        if self._alive:
            self.connection.discard()
            self._goodbye.answered = None
            self._kept.clear()
            self._arrivals.forget()
        try:
            qlog = None if settings.qlog_dir is None else Qlog(settings.qlog_dir, open_log)
            if settings.keylog_file is not None and self._keylog is None:
                self._keylog = KeyLog(settings.keylog_file)  # _finish closes it
            connection = new_connection(settings, qlog=qlog, keylog=self._keylog, all_groups=all_groups)
        except (OSError, ValueError) as error:
            if self._keylog is not None:
                self._keylog.close()
            raise ConnectFailed(f"cannot use the QUIC settings: {error}", phase="quic", by="us") from error
        self.connection = connection
        self._alive = True
        now = monotonic()
        self._pings.begin(now)
        marking = settings.ecn and self._udp.send_marked(ECT_0)
        connection.connect(self._udp.address, now, largest=self._udp.largest, marking=marking)
        self._send()
        self._early = settings.early_data and connection.early_data_ready

    def _obstructed(self, obstacle: OSError) -> TransportError:
        """The error if nothing has come but an obstacle, such as no route. There is no wait then, as with TCP."""
        words = obstacle.strerror
        if obstacle.errno == errno.EMSGSIZE:
            words = f"datagrams of {self._settings.max_datagram_size} bytes are too large for this network"
        return TransportError(f"{self._udp.address[0]}: {words}", operation="write")

    # Receiving

    def receive_nowait(self) -> list[QuicEvent] | None:
        """Return the events of the next datagrams, a few at a time; never an empty list (see ``Progress``).

        The end of the connection is an event, too (``ConnectionTerminated``). It comes with the batch that brought it.
        """
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        events = self._receive()
        if events is not None and self._alive:
            self._set_alarm()  # an ACK may be due before the backend answers
        return events

    def _receive(self) -> list[QuicEvent] | None:
        connection = self.connection
        if self._lost is not None:
            raise self._lost
        try:
            more = bool(self._arrivals) or self._arrivals.fetch()
        except TransportError as error:
            self._lost = error
            self._goodbye.unreachable = True
            self._stop_alarm()
            raise
        if more and not self._arrivals:
            return [Progress()]  # these were only errors of the socket: look again
        if not more:
            if self._early and connection.silent and not connection.handshake_complete:
                # The connect timeout does not end this handshake, because connect() has returned. So this does.
                if self._settings.unanswered is not None:
                    self._settings.unanswered()
                raise TransportError(f"no answer to early data from {self._settings.server}", operation="read")
            events = connection.take_events()
            if connection.silence_is_news:
                connection.tell_silence()
                events.append(Progress())
            if self._left_over:
                self._left_over = False
                events.append(Progress())
            return events or None
        now = self._pings.heard_at = monotonic()
        self._arrivals.give_some(connection, now)
        connection.was_heard()
        self._follow()
        events = connection.take_events()
        if connection.ended is not None:
            self._ended(now)
        if events:
            self._pings.news(now)
            return events
        return [Progress()]

    def _ended(self, now: float) -> None:
        end = self.connection.ended
        assert end is not None
        if end.by == "us":
            return  # the next flush says it
        if end.code is not None and self._goodbye.answered is None and self._alive:
            self._goodbye.answered = End("us", self._settings.no_error, True, "")
            self._udp.send(self.connection.answer_close(self._settings.no_error, now))
        self._stop_alarm()

    def listen(self, function: Callable[[], None] | None) -> bool:
        assert self._host is not None
        self._listener = function if self._udp.listen(self._host, function) else None
        return self._listener is not None

    async def wait_readable(self) -> None:
        if not self._kept and self._lost is None:
            await self._wait()

    async def _wait(self) -> None:
        if self._arrivals:
            await anyio.lowlevel.checkpoint()
            return
        # This scope is no deadline. By it the alarm wakes this task: see _wake.
        with anyio.CancelScope() as self._waiting:
            try:
                await self._udp.wait_readable()
            finally:
                self._waiting = None

    def _wake(self) -> None:
        """Have the task that waits here, or the listener, look at what there is."""
        if self._waiting is not None:
            self._waiting.cancel()
        elif self._listener is not None and self._host is not None:
            self._host.call_soon(self._call_listener)  # not now: the listener may have called this

    def _call_listener(self) -> None:
        if self._listener is not None:
            self._listener()

    # Sending

    def transmit(self, data: bytes | memoryview = b"") -> None:
        """Send what HTTP has to say: at once if it is the first in this turn of the event loop, else at the turn's end.

        So a single request waits for nothing, and fifty requests that follow one batch of responses share packets.
        Credit and acknowledgements also wait for the end of the turn, and go with those requests.
        """
        if not self._alive or not self.connection.dirty or (self._turn_ends and self.connection.handshake_complete):
            return  # (0-RTT does not wait: it is of use only before the handshake ends)
        assert self._host is not None
        self._pings.sent()
        if not self._turn_ends:
            self._turn_ends = True
            self._host.call_soon(self._end_turn)
        if self.connection.data_queued and not self._held:
            self._send()

    def goodbye_follows(self) -> None:
        self._leaving = True

    def transmit_last(self, data: bytes | memoryview = b"") -> None:
        """What HTTP has to say goes with what follows: :meth:`delivered`, or :meth:`say_goodbye`."""

    def _end_turn(self) -> None:
        self._turn_ends = False
        connection = self.connection
        if self._alive and connection.dirty and (connection.data_queued or not self._leaving):
            self._send()

    def _send(self, *, ping_behind: bool = False) -> None:
        """Build and send all that may go now. Then set the alarm for what must go later.

        :param ping_behind: send a PING, too. It has a packet of its own, and the last one, if that is possible.
        """
        self._held = False
        connection = self.connection
        if self._udp.unsent:
            if ping_behind:
                self._pings.ping(connection)
            return  # the socket is full: congestion control must not count more as sent
        if self._udp.ecn and not connection.marking:
            self._udp.send_marked(NOT_ECT)
        datagrams = connection.datagrams_to_send(monotonic()) if connection.dirty else []
        if ping_behind:
            self._pings.ping(connection)
            datagrams += connection.datagrams_to_send(monotonic())
        if datagrams:
            here = self._udp.address
            self._udp.send([datagram for datagram, address in datagrams if address == here])
            for datagram, address in datagrams:
                if address != here and self._host is not None:
                    self._preferred.probe(datagram, address, connection, self._host, self._probed)
            # At the end of a turn nobody waits for the socket. So the connection is told, and flushes.
            self._left_over = self._udp.unsent > 0
            if self._udp.failed or self._left_over:
                self._wake()
        self._set_alarm()

    def _send_all(self) -> None:
        """Do the same while the connection ends. If the peer has everything, nothing needs to go."""
        connection = self.connection
        if self._held or connection.data_queued or not connection.all_acknowledged:
            self._send()

    def _set_alarm(self) -> None:
        assert self._alarm is not None
        connection = self.connection
        timer = connection.get_timer()
        if timer is None:
            timer = math.inf
        if connection.ended is None:
            timer = min(timer, self._pings.due(connection))
        self._alarm.set(timer)

    @property
    def dead(self) -> bool:
        return not self._alive or self.connection.ended is not None

    @property
    def unsent(self) -> int:
        return self._udp.unsent

    async def flush(self) -> None:
        while self._udp.unsent:
            await self._udp.flush()
            if self._alive:
                self._send()

    def catch_up(self) -> None:
        self._udp.catch_up()

    def _ring(self) -> None:
        """The alarm: serve the timers of QUIC, and the keep-alive."""
        if not self._alive:
            return
        connection = self.connection
        now = monotonic()
        timer = connection.get_timer()
        if timer is not None and now >= timer + _LATE:
            self._look()
            if self._lost is not None:
                return
            timer = connection.get_timer()
        if timer is not None and now >= timer:
            connection.handle_timer(now)
        self._pings.look(connection, now)
        lost = self._udp.lost
        self._send()
        if self._udp.lost > lost and connection.migration_allowed and connection.handshake_complete:
            # The system has no route from our address any more: the network has changed. Try another address.
            with suppress(ConnectFailed):
                self.migrate()
        if connection.ended is not None or connection.silence_is_news or not connection.handshake_complete:
            self._wake()

    def _look(self) -> None:
        """Take what came while the program held the event loop. Otherwise a timer would say that nothing came."""
        self._udp.catch_up()
        try:
            events = self._receive()
        except TransportError as error:
            self._lost = error
            self._wake()
            return
        if events is not None:
            self._kept += events
            self._wake()

    @property
    def acknowledged(self) -> bool:
        return self.connection.all_acknowledged

    async def delivered(self, deadline: Deadline) -> bool:
        """Wait until the peer has acknowledged all that was sent. Return whether it has.

        If the peer falls silent, this ends. A PING follows in a packet of its own, because two packets are acknowledged
        at once, and one only after the peer's ``max_ack_delay`` (RFC 9000 §13.2.2).
        """
        if not self._alive or self.connection.ended is not None:
            return False
        connection = self.connection
        self._send(ping_behind=True)
        with deadline.scope():
            try:
                await self.flush()
                while not connection.all_acknowledged and connection.ended is None:
                    if connection.silent:
                        return False
                    await self._wait()
                    self._kept += self._receive() or ()
                    self._send_all()
                    await self.flush()
            except TransportError:
                return False
        return connection.ended is None and connection.all_acknowledged

    def _probed(self) -> None:
        """Something has come from the server's preferred address, and the connection has taken it."""
        self._follow()
        if self._alive:
            self._send()
            self._wake()

    def _follow(self) -> None:
        """If the connection has moved to the preferred address, use that socket from now on."""
        if self._preferred.reached(self.connection) and self._host is not None:
            self._pings.ping(self.connection)
            self._host.call_later(CLOSING_PROBES * self.connection.probe_timeout, self._preferred.end)

    # Changes while it lives

    def migrate(self, local_address: str | None = None) -> None:
        """Go on from a new local port, or address, under a new connection ID (RFC 9000 §9.2, §9.5).

        :raises ConnectFailed: if no such socket can be made, or the peer forbids migration
            (``disable_active_migration``). The connection goes on as it was.
        """
        if not self.connection.migration_allowed:
            raise ConnectFailed("the peer does not allow migration", phase="quic", by="peer")
        self._udp.rebind(local_address)
        self.connection.path_changed(ours=True)
        self._pings.ping(self.connection)
        self._send()

    def update_keys(self) -> None:
        """Begin to use new packet protection keys (RFC 9001 §6), once the peer has taken the current ones."""
        self.connection.update_keys()
        self._pings.ping(self.connection)
        self._send()

    # Ending

    def say_goodbye(self) -> None:
        if not self._alive or self.connection.ended is not None:
            return  # there is no connection yet, or it is over
        self._send_all()  # close() would drop what is queued
        self._stop_alarm()
        self.connection.close(self._settings.no_error)
        self._goodbye.datagrams = [datagram for datagram, _ in self.connection.datagrams_to_send(monotonic())]
        self._udp.send(self._goodbye.datagrams)
        self._wake()  # wake delivered(): it need not wait for acknowledgements any more

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        if self._end is not None:
            return self._end
        began = monotonic()
        if self._alive and self.connection.ended is None:
            self._send_all()
            if self.unsent:
                with deadline.scope(), suppress(TransportError):
                    await self.flush()
            self.say_goodbye()
        if not self._goodbye.datagrams:
            return self.abort()
        assert self._host is not None
        waited = await self._goodbye.closing_period(self.connection, self._udp, self._arrivals, self._host, deadline)
        return self._end or self._finish(Outcome.CLEAN if waited else Outcome.TIMED_OUT, began)

    def abort(self, *, reset: bool = True) -> LayerEnd:
        if self._end is not None:
            return self._end
        if not self._alive:
            self._end = LayerEnd(self.name, "", "", Outcome.SKIPPED)
            return self._end
        connection = self.connection
        if self._goodbye.datagrams:
            return self._finish(self._goodbye.waited(connection), monotonic())
        if self._held:
            self._send()
        self._stop_alarm()
        if not self._goodbye.unreachable:
            if connection.ended is None:
                connection.close(H3_REQUEST_CANCELLED)
            # This may be an earlier close with an error's code. If the peer has closed, it is nothing.
            self._udp.send([datagram for datagram, _ in connection.datagrams_to_send(monotonic())])
        return self._finish(self._goodbye.aborted(connection), monotonic())

    def _stop_alarm(self) -> None:
        """Set no timer any more."""
        if self._alarm is not None:
            self._alarm.stop()

    def _finish(self, outcome: Outcome, began: float) -> LayerEnd:
        self._alive = False
        self._stop_alarm()
        self._end = self._goodbye.report(self.name, self.connection, outcome, monotonic() - began)
        self.connection.discard()
        self._preferred.end()
        if self._keylog is not None:
            self._keylog.close()
        return self._end

    def so_far(self) -> LayerEnd:
        if self._end is not None:
            return self._end
        goodbye = self._goodbye
        return goodbye.report(self.name, self.connection, goodbye.waited(self.connection), 0.0)

    def extra(self, name: str) -> Any:
        if name == "quic":
            return self
        if name == "certificate":
            certificate = self.connection.judged_certificate if self._strict else None
            return PeerCertificate.of_quic(certificate) if certificate is not None else None
        return None
