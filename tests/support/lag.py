"""How slow a machine may be: a test asserts order and cause, and where it must tell waiting from not waiting, amply."""

from __future__ import annotations

import gc
from collections.abc import Callable
from inspect import signature

import dns.resolver
import httpx
import httpx2
import pytest

import allswell
from allswell._config import PoolConfig, Timeouts
from allswell._connection import driver
from allswell._dial import addresses, dialer, https_records, race
from allswell._pool import endings, member, pool
from allswell._quic import connection
from allswell._request import network_stream
from allswell._transport import Sender
from allswell.testing import Origin

#: Seconds that a busy machine may add to anything. What a test shows not to be waited for must take far longer.
LAG = 10.0

#: Seconds that a client waits for whatever a test says nothing of.
PATIENCE = 6 * LAG


def be_patient() -> None:
    """Let whatever a test says nothing of take as long as it takes: the defaults are made for networks, not for this.

    A test whose subject is a timeout, a grace or an expiry says so; one whose subject is another of these times gets it
    back with a function below.
    """
    monkeypatch = pytest.MonkeyPatch()  # for as long as this process runs
    for name in ("connect", "read", "write", "pool"):
        _by_default(Timeouts.__init__, name, PATIENCE)
        for library in (httpx2, httpx):
            setattr(signature(library.AsyncClient).parameters["timeout"].default, name, PATIENCE)
    monkeypatch.setattr(pool, "_TIMEOUTS", Timeouts())
    for takes_grace in (PoolConfig.__init__, Sender.__init__, allswell.AsyncClient.__init__):
        _by_default(takes_grace, "grace", 3 * LAG)
    for keeps in (PoolConfig.__init__, httpx2.Limits.__init__):
        _by_default(keeps, "keepalive_expiry", PATIENCE)
    signature(httpx2.AsyncClient).parameters["limits"].default.keepalive_expiry = PATIENCE
    _by_default(PoolConfig.__init__, "expect_continue_timeout", PATIENCE)
    for wait in (Origin.ended, Origin.wait_ended, Origin.seen, Origin.wait_seen):
        _by_default(wait, "timeout", PATIENCE)
    _by_default(Origin.assert_ended_gracefully, "timeout", LAG)
    stagger(monkeypatch, 3 * LAG)
    resolution_delay(monkeypatch, 3 * LAG)
    monkeypatch.setattr(https_records, "_LIFETIME", PATIENCE)
    monkeypatch.setattr(dns.resolver.BaseResolver, "reset", _patient(dns.resolver.BaseResolver.reset))
    room_is_awaited(monkeypatch, LAG)
    for module in (driver, endings):  # in which answers are heard when the event loop ends
        monkeypatch.setattr(module, "LAST_MOMENT", LAG / 2)
    monkeypatch.setattr(endings, "_SLACK", LAG / 2)  # in which tasks that wait for nothing any more have their turn
    websocket_servers_end_within(monkeypatch, 3 * LAG)
    silent_after(monkeypatch, 10)  # from milliseconds on, in a handshake: each waits twice as long as the one before


def _patient(reset: Callable[[dns.resolver.BaseResolver], None]) -> Callable[[dns.resolver.BaseResolver], None]:
    """As it does, and then a server is asked once, and not again after two seconds: tests count the queries."""

    def patient(self: dns.resolver.BaseResolver) -> None:
        reset(self)
        self.timeout = PATIENCE

    return patient


def _by_default(function: Callable[..., object], name: str, value: float) -> None:
    """Give a parameter another default."""
    if (by_keyword := function.__kwdefaults__) and name in by_keyword:
        by_keyword[name] = value
        return
    defaults = list(function.__defaults__ or ())
    names = [each.name for each in signature(function).parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
    defaults[names.index(name) - len(names)] = value
    function.__defaults__ = tuple(defaults)


def websocket_servers_end_within(
    monkeypatch: pytest.MonkeyPatch, seconds: float = network_stream._SERVER_ENDS_WITHIN
) -> None:
    """Have a WebSocket's server be waited for so long, once the session is closed; by default, half a second."""
    monkeypatch.setattr(network_stream, "_SERVER_ENDS_WITHIN", seconds)


def silent_after(monkeypatch: pytest.MonkeyPatch, probes: int = connection._SILENT_PROBES) -> None:
    """Have a QUIC peer be silent that leaves so many probes unanswered; by default, three."""
    monkeypatch.setattr(connection, "_SILENT_PROBES", probes)


def those_there_are_silent_after(monkeypatch: pytest.MonkeyPatch, probes: int = connection._SILENT_PROBES) -> None:
    """As :func:`silent_after`, for the QUIC connections that there are by now. Later ones are as patient as before."""
    there = [each for each in gc.get_objects() if isinstance(each, connection.ClientConnection)]
    for each in there:  # a round trip on a busy machine would have each probe wait for seconds
        each.engine._loss._rtt_smoothed, each.engine._loss._rtt_variance = 0.02, 0.01
    handle_timer = connection.ClientConnection.handle_timer

    def handled(self: connection.ClientConnection, now: float) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if self in there:
                silent_after(patch, probes)
            handle_timer(self, now)

    monkeypatch.setattr(connection.ClientConnection, "handle_timer", handled)


def long_closing_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a QUIC connection's end wait for an answer far longer than any takes (and not three PTO)."""
    monkeypatch.setattr(connection.ClientConnection, "probe_timeout", LAG)


def stagger(monkeypatch: pytest.MonkeyPatch, seconds: float = race.CONNECTION_ATTEMPT_DELAY) -> None:
    """Have connection attempts follow one another at this distance; by default, at 250 ms (RFC 8305 §5)."""
    for module in (race, dialer):
        monkeypatch.setattr(module, "CONNECTION_ATTEMPT_DELAY", seconds)


def resolution_delay(monkeypatch: pytest.MonkeyPatch, seconds: float = addresses.RESOLUTION_DELAY) -> None:
    """Have answers of the resolver that are late be waited for for so long; by default, 50 ms (RFC 8305 §3)."""
    for module in (addresses, https_records):
        monkeypatch.setattr(module, "RESOLUTION_DELAY", seconds)


def room_is_awaited(monkeypatch: pytest.MonkeyPatch, seconds: float = member.EXPECTED_WITHIN) -> None:
    """Have room that a connection is about to have be waited for for so long; by default, 250 ms."""
    monkeypatch.setattr(member, "EXPECTED_WITHIN", seconds)
