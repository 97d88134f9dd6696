"""The QUIC filter: a connection on a UDP filter, driven in batches, and ended so that the peer learns of it.

Theory of operation. :class:`~allswell._quic.connection.ClientConnection` is sans-IO; three things move it.
Input: :meth:`QuicFilter.receive_nowait` feeds it a few datagrams and returns what they meant, and sends nothing, so
that they are answered by one flush. Output: :meth:`QuicFilter.transmit`, which any task may call, builds all
datagrams that may go now and hands them to UDP. Time: acknowledgements that are due, probes, pacing, the idle timeout.
Every transmission sets the one :class:`~allswell._tasks.Alarm` anew, which costs a comparison. When it rings it serves
the timers and sends, there and then, in a callback of the event loop: no task is switched to. The connection's task
is woken only when it has something to learn (the connection is over, or the socket is full and must be waited for).

How it ends (RFC 9000 §10.2). :meth:`QuicFilter.shutdown` sends CONNECTION_CLOSE and enters the closing period, of three
PTO at most. The packet may be lost and is never acknowledged, so it goes three times within the first PTO. A later copy
could reach a peer that has left its own draining period, and draw a stateless reset: from then on it is sent only in
answer to what still arrives, to the 1st, 2nd, 4th, 8th … datagram. The period ends early with the peer's own
CONNECTION_CLOSE, its stateless reset, or an unreachable port: then it knows. When the peer closes first, it is answered
with one CONNECTION_CLOSE (§10.2.2), and then nothing more is sent, whatever comes.
"""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel

from allswell._addresses import SocketAddress
from allswell._clock import monotonic
from allswell._deadline import Deadline
from allswell._errors import ConnectFailed, TransportError
from allswell._filters.certificates import PeerCertificate, strict
from allswell._filters.interface import Carrier, Datagrams, Run
from allswell._filters.keylog import KeyLog, open_log
from allswell._quic.connection import ClientConnection, handshake_error, new_connection
from allswell._quic.ecn import ECT_0, NOT_ECT
from allswell._quic.interface import End, Progress, QuicEvent
from allswell._quic.qlog import Qlog
from allswell._quic.settings import QuicSettings
from allswell._report import LayerEnd, Outcome
from allswell._tasks import Alarm, TaskHost, current_host, weak_method

#: RFC 9114 §8.1. An aborted transfer must not look like a completed one, so abort() says this and never NO_ERROR.
H3_REQUEST_CANCELLED = 0x10C
#: PTO of the closing period (RFC 9000 §10.2).
_CLOSING_PROBES = 3
#: Copies of our CONNECTION_CLOSE, spread over the first PTO of the closing period.
_GOODBYES = 3
#: Seconds without news of a response that is waited for, before the path is tried with a PING. The next one waits twice
#: as long, but never longer than half of the idle timeout. A NAT that forgot us lets nothing in until something goes
#: out, and a client that only receives sends nothing.
_PING_AFTER = 0.5
#: Seconds for which the end of the handshake waits for the first request, to go in one datagram with it.
_HOLD = 0.005
#: Seconds by which a timer is served late when the program has held the event loop.
_LATE = 0.005
#: Of what has arrived, so much is looked into at a time, however small the frames are that the peer has made of it.
_TAKE_SECONDS, _TAKE_BYTES = 0.004, 128 * 1024


class QuicFilter(Carrier[list[QuicEvent]]):
    """A QUIC connection.

    :param udp: what it sends on.
    :param settings: see there.
    :ivar connection: the connection itself, for the backend on top; made by :meth:`connect`.
    """

    name = "quic"
    connection: ClientConnection

    def __init__(self, udp: Datagrams, settings: QuicSettings) -> None:
        self._udp = udp
        self._settings = settings
        self._host: TaskHost | None = None
        self._alarm: Alarm | None = None
        self._listener: Callable[[], None] | None = None
        self._alive = False
        self._heard_at = 0.0
        self._quiet_since = 0.0  # the last news, or the last PING that asked for some
        self._ping_after = _PING_AFTER
        self._kept: list[QuicEvent] = []
        self._arrived: deque[Run] = deque()  # not looked into yet
        self._looked = 0  # datagrams of the first one that were
        self._sent_in_turn = False
        self._held = False  # the end of the handshake is to go with the first request
        self._waiting: anyio.CancelScope | None = None
        self._pings = 0
        self._answered: End | None = None
        self._unreachable = False
        self._lost: TransportError | None = None  # it is told to every read: the system tells it once
        self._early = False
        self._probe_socket: Datagrams | None = None
        self._keylog: KeyLog | None = None
        self._goodbye: list[bytes] = []  # the datagrams of our CONNECTION_CLOSE, once it was said
        self._end: LayerEnd | None = None

    # Connecting

    async def connect(self) -> None:
        """Shake hands; with 0-RTT, only begin to: the rest happens while the first requests are on their way."""
        self._host = current_host()
        self._alarm = Alarm(self._host, weak_method(self._ring))
        # 0-RTT does not wait for an answer, so it cannot begin anew.
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
        """Make the connection, or another in its place, and send its first flight."""
        settings = self._settings
        if self._alive:
            self.connection.discard()
            self._answered, self._looked = None, 0
            self._kept.clear()
            self._arrived.clear()
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
        self._heard_at = self._quiet_since = monotonic()
        marking = settings.ecn and self._udp.send_marked(ECT_0)
        connection.connect(self._udp.address, self._heard_at, largest=self._udp.largest, marking=marking)
        self._send()
        self._early = settings.early_data and connection.early_data_ready

    def _obstructed(self, obstacle: OSError) -> TransportError:
        """Where nothing was heard but that there is no way, it is not waited for. (Nor does TCP.)"""
        words = obstacle.strerror
        if obstacle.errno == errno.EMSGSIZE:
            words = f"datagrams of {self._settings.max_datagram_size} bytes are too large for this network"
        return TransportError(f"{self._udp.address[0]}: {words}", operation="write")

    # Receiving

    def receive_nowait(self) -> list[QuicEvent] | None:
        """What the next datagrams meant, a few at a time; never an empty list (see ``Progress``).

        The end of the connection is an event too (``ConnectionTerminated``), with the batch that brought it.
        """
        if self._kept:
            kept, self._kept = self._kept, []
            return kept
        events = self._receive()
        if events is not None and self._alive:
            self._set_alarm()  # an ACK may be due before what came is answered
        return events

    def _take_batch(self) -> bool:
        """Take datagrams from the socket; whether there may be more."""
        runs = self._udp.receive_nowait()
        if runs is None:
            return False
        self._arrived += runs
        return True

    def _receive(self) -> list[QuicEvent] | None:
        connection = self.connection
        if self._lost is not None:
            raise self._lost
        try:
            more = bool(self._arrived) or self._take_batch()
        except TransportError as error:
            self._lost = error
            self._unreachable = True
            self._stop_alarm()
            raise
        if more and not self._arrived:
            return [Progress()]  # nothing was heard, but there may be more to look at
        if not more:
            if self._early and connection.silent and not connection.handshake_complete:
                # A handshake that is waited for ends with the time to connect. This one is not, and it was no success.
                if self._settings.unanswered is not None:
                    self._settings.unanswered()
                raise TransportError(f"no answer to early data from {self._settings.server}", operation="read")
            events = connection.take_events()
            if connection.silence_is_news:
                connection.tell_silence()
                events.append(Progress())
            return events or None
        now = self._heard_at = monotonic()
        until, size = now + _TAKE_SECONDS, _TAKE_BYTES
        while self._arrived and size > 0:
            size -= self._take(now, lambda: monotonic() >= until)
            if monotonic() >= until:
                break
        connection.was_heard()
        self._follow()
        events = connection.take_events()
        if connection.ended is not None:
            self._ended(now)
        if events:
            self._quiet_since, self._ping_after = now, _PING_AFTER
            return events
        return [Progress()]

    def _take(self, now: float, over: Callable[[], bool]) -> int:
        """Look into what has arrived, a run at most; bytes that it was."""
        (data, ends, mark), looked = self._arrived[0], self._looked
        start = ends[looked - 1] if looked else 0
        looked = self._looked = self.connection.receive_run(data, ends, looked, self._udp.address, now, mark, over)
        if looked == len(ends):
            self._arrived.popleft()
            self._looked = 0
        return ends[looked - 1] - start

    def _ended(self, now: float) -> None:
        end = self.connection.ended
        assert end is not None
        if end.by == "us":
            return  # the next flush says it
        if end.code is not None and self._answered is None and self._alive:
            self._answered = End("us", self._settings.no_error, True, "")
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
        if self._arrived:
            await anyio.lowlevel.checkpoint()
            return
        # Not a deadline, but the way for the alarm to wake this task: see _wake.
        with anyio.CancelScope() as self._waiting:
            try:
                await self._udp.wait_readable()
            finally:
                self._waiting = None

    def _wake(self) -> None:
        """Have the connection's task, or its listener, look at what there is."""
        if self._waiting is not None:
            self._waiting.cancel()
        elif self._listener is not None and self._host is not None:
            self._host.call_soon(self._call_listener)  # not now: it may be what called this

    def _call_listener(self) -> None:
        if self._listener is not None:
            self._listener()

    # Sending

    def transmit(self, data: bytes = b"") -> None:
        """Send now; or, what comes later in the same turn of the event loop, together at its end.

        Fifty requests that one batch of responses set free share packets that way, and one alone waits for nothing.
        """
        if not self._alive or not self.connection.dirty or (self._sent_in_turn and self.connection.handshake_complete):
            return  # (0-RTT is worth nothing once the handshake is over: that does not wait)
        assert self._host is not None
        if self._ping_after == math.inf:  # nothing was waited for, but this may be a request
            self._quiet_since, self._ping_after = monotonic(), _PING_AFTER
        if not self._sent_in_turn:
            self._sent_in_turn = True
            self._host.call_soon(self._end_turn)
        if not self._held:
            self._send()

    def _end_turn(self) -> None:
        self._sent_in_turn = False
        if self._alive and self.connection.dirty:
            self._send()

    def _send(self) -> None:
        """Build and send all that may go now; then set the alarm for what must go later."""
        self._held = False
        if self._udp.unsent:
            return  # the socket is full: congestion control must not believe that more was sent
        connection = self.connection
        if self._udp.ecn and not connection.marking:
            self._udp.send_marked(NOT_ECT)
        if connection.dirty and (datagrams := connection.datagrams_to_send(monotonic())):
            here = self._udp.address
            self._udp.send([datagram for datagram, address in datagrams if address == here])
            for datagram, address in datagrams:
                if address != here:
                    self._send_probe(datagram, address)
            if self._udp.failed:
                self._wake()
        self._set_alarm()

    def _set_alarm(self) -> None:
        assert self._alarm is not None
        connection = self.connection
        timer = connection.get_timer()
        if timer is None:
            timer = math.inf
        if connection.ended is None:
            timer = min(timer, self._quiet_since + self._ping_after, self._heard_at + self._keepalive)
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
        if now >= self._quiet_since + self._ping_after:
            if connection.handshake_complete and connection.awaits_response:
                self._quiet_since, self._ping_after = now, min(2 * self._ping_after, connection.idle_timeout / 2)
                self._ping()
            else:
                self._ping_after = math.inf
        if now >= self._heard_at + self._keepalive and connection.ended is None:
            self._heard_at = now
            self._ping()
        lost = self._udp.lost
        self._send()
        if self._udp.lost > lost and connection.migration_allowed and connection.handshake_complete:
            # There is no way any more from this address: the network has changed under us. Try from another.
            with suppress(ConnectFailed):
                self.migrate()
        untold = connection.ended is not None or connection.silence_is_news or not connection.handshake_complete
        if untold or self._udp.unsent:
            self._wake()

    def _look(self) -> None:
        """Take what has come while the program held the event loop, before a timer says that nothing has."""
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
    def _keepalive(self) -> float:
        """Seconds of silence after which a PING goes; the peer may forget the connection sooner than we would."""
        keepalive = self._settings.keepalive
        return math.inf if keepalive is None else min(keepalive, self.connection.idle_timeout / 2)

    def _ping(self) -> int:
        self._pings += 1
        self.connection.send_ping(self._pings)
        return self._pings

    @property
    def acknowledged(self) -> bool:
        return self.connection.all_acknowledged

    async def delivered(self, deadline: Deadline) -> bool:
        """Wait until all that was sent is acknowledged; whether it is. A peer that has fallen silent is gone.

        A PING follows in a packet of its own: two packets are acknowledged at once, one only after the peer's
        ``max_ack_delay`` (RFC 9000 §13.2.2).
        """
        if not self._alive or self.connection.ended is not None:
            return False
        connection = self.connection
        self._send()
        self._ping()
        self._send()
        with deadline.scope():
            try:
                await self.flush()
                while not connection.all_acknowledged and connection.ended is None:
                    if connection.silent:
                        return False
                    await self._wait()
                    self._kept += self._receive() or ()
                    self._send()
                    await self.flush()
            except TransportError:
                return False
        return connection.ended is None and connection.all_acknowledged

    # The server's preferred address (RFC 9000 §9.6): aioquic probes it when the handshake is confirmed, and moves there
    # when it answers. A socket that is connected reaches one address, so the probe has a socket of its own. When the
    # connection has moved, the two are swapped. The old one stays for a while: something may be on its way to it.

    def _send_probe(self, datagram: bytes, address: SocketAddress) -> None:
        if self._probe_socket is None:
            try:
                self._probe_socket = self._udp.sibling(address)
            except ConnectFailed:
                return  # a probe that is lost
            assert self._host is not None
            self._host.spawn(self._serve_probe_socket, self._probe_socket, name="allswell probes a preferred address")
        if self._probe_socket.address == address:
            self._probe_socket.send([datagram])

    async def _serve_probe_socket(self, probe_socket: Datagrams) -> None:
        connection = self.connection
        with suppress(TransportError):
            while self._probe_socket is probe_socket:
                await probe_socket.wait_readable()
                for run in probe_socket.receive_nowait() or ():
                    for datagram in run.datagrams():
                        connection.receive_datagram(datagram, probe_socket.address, monotonic(), run.mark)
                self._follow()
                if self._alive:
                    self._send()
                    self._wake()
        probe_socket.abort()

    def _follow(self) -> None:
        """Send from where the connection has moved to; at once, and not only probes (§9.6.1)."""
        probe_socket = self._probe_socket
        if probe_socket is not None and self.connection.peer_address == probe_socket.address and self._host is not None:
            self._udp.swap(probe_socket)
            self.connection.path_changed(ours=False)
            self._ping()
            self._host.call_later(_CLOSING_PROBES * self.connection.probe_timeout, self._end_probe_socket)

    def _end_probe_socket(self) -> None:
        probe_socket, self._probe_socket = self._probe_socket, None
        if probe_socket is not None:
            probe_socket.abort()

    # Changes while it lives

    def migrate(self, local_address: str | None = None) -> None:
        """Go on from a new local port, or address, under a new connection ID (RFC 9000 §9.2, §9.5).

        :raises ConnectFailed: when there is no such socket to be had, or the peer forbade it
            (``disable_active_migration``); the connection goes on as it was.
        """
        if not self.connection.migration_allowed:
            raise ConnectFailed("the peer does not allow migration", phase="quic", by="peer")
        self._udp.rebind(local_address)
        self.connection.path_changed(ours=True)
        self._ping()
        self._send()

    def update_keys(self) -> None:
        """Begin to use new packet protection keys (RFC 9001 §6)."""
        self.connection.update_keys()
        self._ping()
        self._send()

    # Ending

    def say_goodbye(self) -> None:
        if not self._alive or self.connection.ended is not None:
            return  # nothing was said yet, or all is said
        self._send()  # what is queued would be dropped by close()
        self._stop_alarm()
        self.connection.close(self._settings.no_error)
        self._goodbye = [datagram for datagram, _ in self.connection.datagrams_to_send(monotonic())]
        self._udp.send(self._goodbye)
        self._wake()  # acknowledgements are not waited for any longer

    async def shutdown(self, deadline: Deadline) -> LayerEnd:
        if self._end is not None:
            return self._end
        began = monotonic()
        if self._alive and self.connection.ended is None:
            self._send()
            if self.unsent:
                with deadline.scope(), suppress(TransportError):
                    await self.flush()
            self.say_goodbye()
        if not self._goodbye:
            return self.abort()
        waited = await self._closing(self._goodbye, deadline)
        return self._end or self._finish(Outcome.CLEAN if waited else Outcome.TIMED_OUT, began)

    async def _closing(self, goodbye: list[bytes], deadline: Deadline) -> bool:
        """The closing period (RFC 9000 §10.2.1); whether it was over before the deadline, which may come forward."""
        connection, udp = self.connection, self._udp
        now = monotonic()
        interval = connection.probe_timeout
        end = now + _CLOSING_PROBES * interval
        period = deadline.sooner(end - now)
        copies = [at for number in range(1, _GOODBYES) if (at := now + interval * number / _GOODBYES) < period.at]

        def repeat() -> None:
            udp.send(goodbye)
            del copies[0]

        assert self._host is not None
        timers = [self._host.call_later(at - now, repeat) for at in copies]
        arrived, answer_at = 0, 1
        try:
            with period.scope():
                while connection.heard is None:
                    if not self._arrived:
                        await udp.flush()
                        await udp.wait_readable()
                        self._take_batch()
                    while self._arrived:
                        self._take(monotonic(), lambda: True)
                        arrived += 1
                    if connection.heard is None and arrived >= answer_at:
                        udp.send(goodbye)
                        while answer_at <= arrived:
                            answer_at *= 2
                return True
            while copies:  # where the event loop was late for all of it
                repeat()
        except TransportError:
            self._unreachable = True  # the port is closed: there is no peer left to be told
            return True
        finally:
            for timer in timers:
                timer.cancel()
        return deadline.at >= end

    def abort(self, *, reset: bool = True) -> LayerEnd:
        if self._end is not None:
            return self._end
        if not self._alive:
            self._end = LayerEnd(self.name, "", "", Outcome.SKIPPED)
            return self._end
        connection = self.connection
        if self._goodbye:
            return self._finish(self._waited(), monotonic())
        if self._held:
            self._send()
        self._stop_alarm()
        if not self._unreachable:
            if connection.ended is None:
                connection.close(H3_REQUEST_CANCELLED)
            # Or a close with an error's code that is still to be said. Nothing, where the peer has closed.
            self._udp.send([datagram for datagram, _ in connection.datagrams_to_send(monotonic())])
        ended = connection.ended
        if ended is not None and ended.by == "peer" and ended.code is not None:
            outcome = Outcome.PEER_FIRST
        elif ended is not None and ended.by == "network":
            outcome = Outcome.SKIPPED  # the idle timeout ends both sides without a word (RFC 9000 §10.1)
        else:
            outcome = Outcome.ABORTED
        return self._finish(outcome, monotonic())

    def _stop_alarm(self) -> None:
        """No timer any more."""
        if self._alarm is not None:
            self._alarm.stop()

    def _finish(self, outcome: Outcome, began: float) -> LayerEnd:
        self._alive = False
        self._stop_alarm()
        self._end = self._layer_end(outcome, monotonic() - began)
        self.connection.discard()
        self._end_probe_socket()
        if self._keylog is not None:
            self._keylog.close()
        return self._end

    def so_far(self) -> LayerEnd:
        return self._end or self._layer_end(self._waited(), 0.0)

    def _waited(self) -> Outcome:
        """How it ends when the answer to our goodbye is not waited for any longer."""
        return Outcome.TIMED_OUT if self.connection.heard is None and not self._unreachable else Outcome.CLEAN

    def _layer_end(self, outcome: Outcome, seconds: float) -> LayerEnd:
        connection = self.connection
        ended = self._answered or connection.ended
        said = str(ended) if ended is not None and ended.by == "us" and ended.code is not None else ""
        heard = str(connection.heard) if connection.heard is not None else ""
        if self._unreachable:
            heard = heard or "port unreachable"
        return LayerEnd(self.name, said, heard, outcome, seconds)

    def extra(self, name: str) -> Any:
        if name == "quic":
            return self
        if name == "certificate":
            certificate = self.connection.judged_certificate if strict(self._settings.trust) else None
            return PeerCertificate.of_quic(certificate) if certificate is not None else None
        return None
