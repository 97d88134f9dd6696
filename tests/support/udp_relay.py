"""A UDP relay in user space that loses, reorders, duplicates, corrupts, delays; goes dark, and rebinds like a NAT.

It runs in a thread of its own, so it serves tests on any event loop. What it does is drawn from a seeded generator.
"""

from __future__ import annotations

import heapq
import queue
import random
import select
import socket
import threading
from dataclasses import dataclass
from time import monotonic
from types import TracebackType


@dataclass
class Weather:
    """What happens to the datagrams of one direction; the numbers are probabilities.

    :ivar delay: seconds, drawn evenly from this range.
    :ivar mtu: larger UDP payloads are lost.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    delay: tuple[float, float] = (0.0, 0.0)
    mtu: int = 65527


#: Networks through which all arrives in the end.
BAD_WEATHER = {
    "loss": Weather(loss=0.1, delay=(0.001, 0.003)),
    "reorder": Weather(reorder=0.2, delay=(0.0, 0.004)),
    "duplicate": Weather(duplicate=0.3),
    "corrupt": Weather(corrupt=0.1, delay=(0.001, 0.002)),
}


class UdpRelay:
    """Relays between any number of clients and one server on the loopback.

    :ivar port: where clients send to.
    :ivar up: the weather on the way to the server; ``down``: back.
    :ivar went_up: the datagrams that clients sent here, whatever became of them; ``went_down``: back.
    :ivar swallows: so many of the next that clients send are lost.
    """

    def __init__(
        self, target: int, *, seed: int = 1, up: Weather | None = None, down: Weather | None = None, port: int = 0
    ) -> None:
        self.up = up or Weather()
        self.down = down or Weather()
        self.went_up: list[bytes] = []
        self.went_down: list[bytes] = []
        self.swallows = 0
        self._target = ("127.0.0.1", target)
        self._random = random.Random(seed)
        self._dark_until = 0.0
        self._front = _socket()
        self._front.bind(("127.0.0.1", port))
        self.port: int = self._front.getsockname()[1]
        self._backs: dict[tuple[str, int], socket.socket] = {}
        self._retired: list[socket.socket] = []
        self._later: list[tuple[float, int, socket.socket, bytes, tuple[str, int]]] = []
        self._count = 0
        self._wake, self._woken = socket.socketpair()
        self._stop = False
        self._rebind = False
        self._settling: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="udp relay", daemon=True)

    def __enter__(self) -> UdpRelay:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop = True
        self._wake.send(b"x")
        self._thread.join(30)
        for sock in (self._front, self._wake, self._woken, *self._backs.values(), *self._retired):
            sock.close()

    @property
    def clients(self) -> int:
        """How many addresses something came from."""
        return len(self._backs)

    def black_out(self, seconds: float) -> None:
        """Lose everything, both ways, for so long."""
        self._dark_until = monotonic() + seconds

    def rebind(self) -> None:
        """From now on the server sees other ports; nothing comes back to the old ones."""
        self._rebind = True
        self._wake.send(b"x")

    def settle(self) -> None:
        """Block until all that was sent here so far has been seen, and passed on unless it is delayed."""
        settled = threading.Event()
        self._settling.put(settled)
        self._wake.send(b"x")
        assert settled.wait(30)

    def _run(self) -> None:
        while not self._stop:
            settling = [self._settling.get() for _ in range(self._settling.qsize())]
            backs = {back: client for client, back in self._backs.items()}
            timeout = max(0.0, self._later[0][0] - monotonic()) if self._later else None
            if settling:
                timeout = 0.0
            ready, _, _ = select.select([self._front, self._woken, *backs], [], [], timeout)
            for sock in ready:
                if sock is self._woken:
                    sock.recv(100)
                elif sock is self._front:
                    self._relay_up()
                else:
                    self._relay_down(sock, backs[sock])
            if self._rebind:
                self._rebind = False
                self._retired += self._backs.values()
                self._backs = {}
            now = monotonic()
            while self._later and self._later[0][0] <= now:
                _, _, sock, data, address = heapq.heappop(self._later)
                _send(sock, data, address)
            for settled in settling:
                settled.set()

    def _relay_up(self) -> None:
        while True:
            try:
                data, client = self._front.recvfrom(65535)
            except BlockingIOError:
                return
            self.went_up.append(data)
            if self.swallows:
                self.swallows -= 1
                continue
            back = self._backs.get(client)
            if back is None:
                back = self._backs[client] = _socket()
            self._pass_on(back, data, self._target, self.up)

    def _relay_down(self, back: socket.socket, client: tuple[str, int]) -> None:
        while True:
            try:
                data = back.recv(65535)
            except (BlockingIOError, ConnectionRefusedError):
                return
            self.went_down.append(data)
            self._pass_on(self._front, data, client, self.down)

    def _pass_on(self, sock: socket.socket, data: bytes, address: tuple[str, int], weather: Weather) -> None:
        chance = self._random.random
        if monotonic() < self._dark_until or chance() < weather.loss or len(data) > weather.mtu:
            return
        if chance() < weather.corrupt:
            place = self._random.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ (1 + self._random.randrange(255))]) + data[place + 1 :]
        copies = 2 if chance() < weather.duplicate else 1
        for _ in range(copies):
            delay = self._random.uniform(*weather.delay)
            if chance() < weather.reorder:
                delay += 0.01
            if delay <= 0:
                _send(sock, data, address)
            else:
                self._count += 1
                heapq.heappush(self._later, (monotonic() + delay, self._count, sock, data, address))


def _socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return sock


def _send(sock: socket.socket, data: bytes, address: tuple[str, int]) -> None:
    try:
        sock.sendto(data, address)
    except (BlockingIOError, ConnectionRefusedError):
        return  # one more that is lost
