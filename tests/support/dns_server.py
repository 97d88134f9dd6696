"""A DNS server on loopback, over UDP and TCP, in a thread of its own; its zone is text, its answers are dnspython's."""

from __future__ import annotations

import itertools
import select
import socket
import struct
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from types import TracebackType

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.zonefile

Reply = Callable[[dns.message.Message], bytes]

_SOA = "ns.example. nobody.example. 1 3600 600 86400"


class DnsServer:
    """The server: a context manager.

    :param zone: records as in a zone file, with absolute names and without their class. It may be changed at any time.
    :param negative: seconds for which a "no" counts.
    :ivar delay: seconds before each answer.
    :ivar held: no answer goes while this is so.
    :ivar reply: bytes to answer a query with, in place of what the zone says; ``b""`` for no answer.
    :ivar truncate: whether answers over UDP are cut, so that the client has to come by TCP.
    :ivar queries: the names that were asked for, over UDP; those over TCP end in ``" over TCP"``. (In a test's own
        process no query is sent again because its answer takes long: see `lag.py`.)
    """

    def __init__(self, zone: str = "", *, negative: int = 60, delay: float = 0.0) -> None:
        self.zone = zone
        self.negative = negative
        self.delay = delay
        self.held = False
        self.reply: Reply | None = None
        self.truncate = False
        self.queries: list[str] = []
        self._udp, self._tcp = _bound()
        self.port: int = self._udp.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._main, name="dns server", daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> DnsServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._wake.send(b"x")
        self._thread.join(30)
        for sock in (self._udp, self._tcp, self._wake, self._woken):
            sock.close()
        if self._failure is not None and error is None:
            raise self._failure

    # In the thread

    def _main(self) -> None:
        try:
            while self._once():
                pass
        except BaseException as error:  # noqa: BLE001 - told by __exit__, in the test's thread
            self._failure = error

    def _once(self) -> bool:
        timeout = max(0.01 * self.held, self._later[0][0] - monotonic()) if self._later else None
        ready, _, _ = select.select([self._udp, self._tcp, self._woken], [], [], timeout)
        if self._woken in ready:
            return False
        if self._udp in ready:
            data, peer = self._udp.recvfrom(65535)
            self._queue(data, lambda answer: self._udp.sendto(answer, peer), over_tcp=False)
        if self._tcp in ready:
            sock, _ = self._tcp.accept()
            sock.settimeout(30)
            (size,) = struct.unpack("!H", sock.recv(2, socket.MSG_WAITALL))
            data = sock.recv(size, socket.MSG_WAITALL)

            def send(answer: bytes) -> None:
                with sock:
                    try:
                        sock.sendall(struct.pack("!H", len(answer)) + answer)
                    except OSError:
                        pass  # the client has given up

            self._queue(data, send, over_tcp=True)
        while self._later and self._later[0][0] <= monotonic() and not self.held:
            self._later.pop(0)[2]()
        return True

    def _queue(self, data: bytes, send: Callable[[bytes], object], *, over_tcp: bool) -> None:
        query = dns.message.from_wire(data)
        [question] = query.question
        self.queries.append(question.name.to_text(omit_final_dot=True) + (" over TCP" if over_tcp else ""))
        answer = self.reply(query) if self.reply is not None else self._answer(query, over_tcp)
        if answer:
            self._later.append((monotonic() + self.delay, next(self._count), partial(send, answer)))
            self._later.sort()

    def _answer(self, query: dns.message.Message, over_tcp: bool) -> bytes:
        response = answered(query, self.zone, negative=self.negative)
        if self.truncate and not over_tcp:
            response.answer, response.authority = [], []
            response.flags |= dns.flags.TC
        return response.to_wire(max_size=65535)


def answered(query: dns.message.Message, zone: str, *, negative: int = 60) -> dns.message.Message:
    """What a recursive server says that knows this zone and nothing else."""
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA
    [question] = query.question
    name, records = question.name, _records(zone)
    while found := [each for each in records if each.name == name and each.rdtype == dns.rdatatype.CNAME]:
        response.answer.append(found[0])
        name = found[0][0].target
    response.answer += [each for each in records if each.name == name and each.rdtype == question.rdtype]
    if not response.answer or response.answer[-1].rdtype == dns.rdatatype.CNAME:
        if not any(each.name == name for each in records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        soa = dns.rrset.from_text("example.", negative, "IN", "SOA", f"{_SOA} {negative}")
        response.authority.append(soa)
    return response


def _records(zone: str) -> list[dns.rrset.RRset]:
    """(A line that begins with a space would go on with the name before.)"""
    return dns.zonefile.read_rrsets("\n".join(line.strip() for line in zone.splitlines()))


def with_rcode(rcode: str) -> Reply:
    """A reply that is this error."""

    def reply(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.from_text(rcode))
        return response.to_wire()

    return reply


def with_rdata(*rdatas: bytes) -> Reply:
    """A reply whose HTTPS records are these bytes, whatever they mean."""

    def reply(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.use_edns(False)
        wire = bytearray(response.to_wire())
        wire[6:8] = struct.pack("!H", len(rdatas))  # ANCOUNT
        for rdata in rdatas:
            wire += b"\xc0\x0c" + struct.pack("!HHIH", 65, 1, 300, len(rdata)) + rdata
        return bytes(wire)

    return reply


def _bound() -> tuple[socket.socket, socket.socket]:
    """A port that is free for both."""
    for _ in range(20):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        try:
            return udp, socket.create_server(udp.getsockname())
        except OSError:
            udp.close()
    raise AssertionError("no port is free for both")
