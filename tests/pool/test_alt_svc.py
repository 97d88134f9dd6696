"""Alt-Svc (RFC 7838): what a field tells, what is tried, what is kept on disk, what is broken and for how long."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path
from time import time
from typing import Any

import anyio
import pytest
import trustme

from allswell import Alternative, AltSvcFile, AltSvcMemory, AltSvcStore, AsyncClient, ConnectionPool
from allswell._config import Timeouts
from allswell._dial import alt_svc as module
from allswell._dial import origin_memory
from allswell._dial.alt_svc import AltSvc
from allswell._dial.origin_memory import BrokenMarks, OriginMemory
from allswell._request.route import Endpoint, Route
from tests.support.certificates import certificates, issue
from tests.support.learnt import broken_ports, time_stands_still
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers

ORIGIN = "https://name.example"
ROUTE, OTHER = (Route("https", f"{name}.example", 443) for name in ("name", "other"))
SOON = Timeouts(connect=30, read=30, write=30, pool=30, total=30)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of what is learnt, and of what is broken: it stands still unless it is moved."""
    now = [1_000_000.0]
    monkeypatch.setattr(module, "time", lambda: now[0])
    for each in (module, origin_memory):
        monkeypatch.setattr(each, "monotonic", lambda: now[0])
    return now


def learnt(*fields: str, age: float = 0.0) -> list[tuple[str, int]]:
    known = AltSvc(OriginMemory())
    for field in fields:
        known.learn(ROUTE, field.encode("latin-1"), age)
    return [(each.host, each.port) for each in known.alternatives(ROUTE)]


HERE = ("name.example", 443)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ('h3=":443"', [HERE]),
        ('h3=":443"; ma=60; persist=1', [HERE]),
        ('h3=":443"; ma="60"; unknown=x', [HERE]),
        ('h3=":8443", h3="Alt.Example:443", h2=":1", h3-29=":2"', [("name.example", 8443), ("alt.example", 443)]),
        ('h3="[2001:db8::1]:443"', [("2001:db8::1", 443)]),
        ('h2="other.example:443", h3=":443"', [HERE]),
        ('h3=":1",h3=":2",h3=":3",h3=":4",h3=":5"', [("name.example", port) for port in (1, 2, 3, 4)]),
        ('h3=":443"; ma=0', []),
        ('h3=":0"', []),
        ('h3=":65536"', []),
        ('h3=":' + "9" * 5000 + '"', []),
        ('h3=":٣"', []),
        ('h3="a b:443", h3="x/y:443", h3="user@host:443", h3=":443"', [HERE]),
        ("clear", []),
        ("", []),
        ("h3", []),
        ("h3=:443", []),
        ('h3=":443', []),
        ('h3=":443", what is this', [HERE]),
        (";;;,,,", []),
        ("\x00\xff" * 1000, []),
        ('h2=":443", ' * 10_000 + 'h3=":443"', []),
    ],
)
def test_fields(field: str, expected: list[tuple[str, int]]) -> None:
    assert learnt(field.encode("utf-8").decode("latin-1")) == expected


def test_a_field_replaces_the_one_before() -> None:
    assert learnt('h3=":1"', 'h3=":2"') == [("name.example", 2)]
    assert learnt('h3=":1"', "clear") == []
    assert learnt('h3=":1"', 'h2=":1"') == []


def test_age(clock: list[float]) -> None:
    known = AltSvc(OriginMemory())
    known.learn(ROUTE, b'h3=":1"; ma=60, h3=":2"', age=30.0)
    assert len(known.alternatives(ROUTE)) == 2
    clock[0] += 31
    assert [each.port for each in known.alternatives(ROUTE)] == [2]
    clock[0] += 24 * 3600 - 62
    assert [each.port for each in known.alternatives(ROUTE)] == [2]  # a day, by default
    clock[0] += 2
    assert known.alternatives(ROUTE) == []


def test_the_same_field_again_extends_it_without_being_read_each_time(clock: list[float]) -> None:
    class Counting(AltSvcMemory):
        puts = 0

        def put(self, origin: str, alternatives: Any) -> None:
            self.puts += 1
            super().put(origin, alternatives)

    store = Counting()
    known = AltSvc(OriginMemory(), store)
    for _ in range(1000):
        known.learn(ROUTE, b'h3=":1"; ma=86400')
        clock[0] += 60
    assert len(known.alternatives(ROUTE)) == 1
    assert store.puts == 100
    for _ in range(20):  # one that lasts a minute
        known.learn(ROUTE, b'h3=":1"; ma=60')
        clock[0] += 20
        assert len(known.alternatives(ROUTE)) == 1


def test_another_network(clock: list[float]) -> None:
    memory = OriginMemory()
    known = AltSvc(memory)
    known.learn(ROUTE, b'h3=":1"; persist=1, h3=":2", h3=":3"; persist=0, h3=":4"; persist=1; ma=9')
    known.learn(OTHER, b'h3=":443"; persist=10')
    memory.network_changed()
    known.network_changed()
    assert [each.port for each in known.alternatives(ROUTE)] == [1, 4]
    assert known.alternatives(OTHER) == []
    known.learn(OTHER, b'h3=":443"; persist=10')  # the same field is news again
    assert len(known.alternatives(OTHER)) == 1


def test_what_is_known_is_bounded() -> None:
    memory = OriginMemory()
    known = AltSvc(memory, AltSvcMemory(origins=100))
    routes = [Route("https", f"{number}.example", 443) for number in range(5000)]
    for route in routes:
        known.learn(route, b'h3=":1"')
    assert sum(bool(known.alternatives(route)) for route in routes) == 100
    assert len(memory) == 4096


def test_what_is_used_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin_memory, "_RECORDS", 3)
    memory = OriginMemory()
    one, two, three, four = (memory.of(Route("https", name, 443)) for name in ("one", "two", "three", "one"))
    assert four is one
    memory.of(Route("https", "four", 443))
    assert memory.of(Route("https", "one", 443)) is one
    assert memory.of(Route("https", "three", 443)) is three
    assert memory.of(Route("https", "two", 443)) is not two


def test_broken_marks(clock: list[float]) -> None:
    memory = OriginMemory()
    marks = memory.of(ROUTE).quic
    one, other = Endpoint("name.example", 443), Endpoint("alt.example", 443)
    for pause in (5, 10, 20, 40, 80, 160, 300, 300):
        marks.failed(one)
        assert marks.broken(one)
        assert not marks.broken(other)  # another alternative
        assert not memory.of(OTHER).quic.broken(one)  # another origin there
        assert marks.broken(one._replace(hints=("192.0.2.1",)))
        clock[0] += pause - 0.1
        assert marks.broken(one)
        clock[0] += 0.2
        assert not marks.broken(one)
    for _ in range(2000):
        marks.failed(one)
    marks.worked(one)
    marks.failed(one)
    clock[0] += 5.1
    assert not marks.broken(one)
    marks.failed(one)
    memory.network_changed()
    assert not marks.broken(one)


def test_broken_marks_are_bounded(clock: list[float]) -> None:
    """An origin may name another alternative each time."""
    marks = BrokenMarks()
    for port in range(1, 1000):
        marks.failed(Endpoint("name.example", port))
    assert len(marks._marks) == 16
    assert marks.broken(Endpoint("name.example", 999))


# On disk


def some(port: int = 443, seconds: float = 3600, *, persist: bool = False, host: str = "alt.example") -> Alternative:
    return Alternative(host, port, float(int(time() + seconds)), persist)


def test_a_file_outlasts_the_process(tmp_path: Path) -> None:
    path = tmp_path / "alt-svc"
    first = AltSvcFile(path)
    kept = {
        ORIGIN: (some(1), some(2, persist=True)),
        "https://name.example:8443": (some(3, host="2001:db8::1"),),
        "https://[::1]": (some(4),),
        "https://gone.example": (some(5, seconds=-10),),
    }
    for origin, alternatives in kept.items():
        first.put(origin, alternatives)
    first.flush()
    second = AltSvcFile(path)
    del kept["https://gone.example"]
    assert {origin: second.get(origin) for origin in second.origins()} == kept
    second.put(ORIGIN, ())
    second.flush()
    assert ORIGIN not in AltSvcFile(path).origins()
    assert [each.name for each in tmp_path.iterdir()] == ["alt-svc"]


FOREIGN = [
    b"",
    b"\x00" * 100,
    b"\xff\xfe\x80" * 1000,
    b"h2 name.example 443 h3 alt.example 443\n",
    b'h2 name.example port h3 alt.example 443 "20991231 00:00:00" 0 0\n',
    b'h2 name.example 443 h3 alt.example 99999 "20991231 00:00:00" 0 0\n',
    b"h2 name.example 443 h3 alt.example " + b"9" * 10_000 + b' "20991231 00:00:00" 0 0\n',
    b'h2 name.example 443 h3 alt.example 443 "20991331 00:00:00" 0 0\n',
    b'h2 name.example 443 h2 alt.example 443 "20991231 00:00:00" 0 0\n',
    b'h2 name.example 443 h3 [] 443 "20991231 00:00:00" 0 0\n',
    b'{"json": true}',
]


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_foreign_content_is_skipped(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "alt-svc"
    path.write_bytes(content + b'\nh2 name.example 443 h3 good.example 443 "20991231 00:00:00" 1 0\n')
    store = AltSvcFile(path)
    assert [each.host for each in store.get(ORIGIN)] == ["good.example"]
    assert store.origins() == [ORIGIN]


def test_a_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "alt-svc"
    with path.open("w") as file:
        for number in range(100_000):
            file.write(f'h2 {number}.example 443 h3 alt.example 443 "20991231 00:00:00" 0 0\n')
    store = AltSvcFile(path, origins=100)
    assert len(store.origins()) == 100
    store.put(ORIGIN, [some()])
    store.flush()
    assert len(path.read_text().splitlines()) == 101


def test_a_file_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "allswell"):
        for path in (tmp_path, tmp_path / "no" / "folder"):
            store = AltSvcFile(path)
            for number in range(10):
                store.put(ORIGIN, [some(number + 1)])
            assert [each.port for each in store.get(ORIGIN)] == [10]
    told = [record.getMessage() for record in caplog.records]
    assert [words.split(" the ")[0] for words in told] == [
        "allswell: cannot read",
        "allswell: cannot write",
        "allswell: cannot write",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_written_all_the_time(tmp_path: Path) -> None:
    store = AltSvcFile(tmp_path / "alt-svc")
    for number in range(100):
        store.put(f"https://{number}.example", [some()])
    assert len((tmp_path / "alt-svc").read_text().splitlines()) == 2
    store.flush()
    assert len((tmp_path / "alt-svc").read_text().splitlines()) == 101


def test_curl_reads_it_and_we_read_curls(tmp_path: Path) -> None:
    """What the other wrote is still there after each had the file."""
    program = shutil.which("curl")
    if program is None or b"alt-svc" not in subprocess.run([program, "-V"], check=True, capture_output=True).stdout:
        pytest.skip("needs curl with alt-svc")
    path = tmp_path / "alt-svc"
    store = AltSvcFile(path)
    kept = (some(1), some(2, persist=True))
    store.put(ORIGIN, kept)
    store.flush()
    subprocess.run([program, "--alt-svc", path, "file:///dev/null"], check=True, capture_output=True)
    assert AltSvcFile(path).get(ORIGIN) == kept


def test_stores_are_stores() -> None:
    stores: list[AltSvcStore] = [AltSvcMemory(), AltSvcFile("/nowhere")]
    assert len(stores) == 2


# Seen by servers


def trusting(**settings: Any) -> ConnectionPool:
    context = settings.pop("context", None) or certificates().client_context()
    return ConnectionPool(http3=True, ssl_context=context, **settings)


def offering(*fields: str) -> Any:
    """A server on TCP that says so with its answer, and then closes."""
    return scripted_peer(answers(1, fields=fields, announce=True), tls=certificates().server_context())


@pytest.mark.anyio
async def test_alternatives_are_tried_in_order_and_a_broken_one_breaks_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time_stands_still(monkeypatch)
    with QuicServer() as gone, QuicServer() as server:
        gone.stop_listening()  # ICMP says that nobody is there
        field = f'Alt-Svc: h3=":{gone.port}", h3="localhost:{server.port}"'
        with offering(field) as tcp:
            async with trusting(keepalive_expiry=0.05) as pool:
                versions = []
                for number in range(3):
                    response = await pool.request("GET", f"https://127.0.0.1:{tcp.port}/hello", timeouts=SOON)
                    versions.append(response.http_version)
                    if number == 0:
                        await tcp.ended()
                    else:
                        with anyio.fail_after(30):
                            while len(server.all("close")) < number:  # noqa: ASYNC110  it expires
                                await anyio.sleep(0.01)
            assert versions == [b"HTTP/1.1", b"HTTP/3", b"HTTP/3"]
            assert len(tcp.connections) == 1
            assert len(server.connections) == 2
        assert broken_ports(pool) == [gone.port]


@pytest.mark.anyio
async def test_fields_in_several_lines_are_one() -> None:
    with QuicServer() as server, offering('Alt-Svc: h2=":1"', f'Alt-Svc: h3=":{server.port}"') as tcp:
        async with trusting() as pool:
            await pool.request("GET", f"https://127.0.0.1:{tcp.port}/hello", timeouts=SOON)
            await tcp.ended()
            response = await pool.request("GET", f"https://127.0.0.1:{tcp.port}/hello", timeouts=SOON)
            assert response.http_version == b"HTTP/3"


@pytest.mark.anyio
async def test_the_alternatives_certificate_must_be_the_origins() -> None:
    """RFC 7838 §2.1: one for the alternative's name alone is none; one for the origin's alone is right."""
    context = certificates().client_context()
    other = trustme.CA()
    context.load_verify_locations(str(issue(other, "localhost").ca))
    for names, version in ((("localhost",), b"HTTP/1.1"), (("127.0.0.1",), b"HTTP/3")):
        with QuicServer(files=issue(other, *names)) as server:
            with offering(f'Alt-Svc: h3="localhost:{server.port}"') as tcp:
                async with trusting(context=context) as pool:
                    await pool.request("GET", f"https://127.0.0.1:{tcp.port}/hello", timeouts=SOON)
                    await tcp.ended()
                    response = await pool.request("GET", f"https://127.0.0.1:{tcp.port}/hello", timeouts=SOON)
                    assert response.http_version == version
            assert len(server.all("request")) == (version == b"HTTP/3")


@pytest.mark.anyio
async def test_a_misdirected_request_forgets_the_alternative() -> None:
    """RFC 7838 §6: and what the 421 itself says of alternatives is not heard."""

    def misdirected(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        connection.respond(stream, 421, b"", (b"alt-svc", f'h3=":{server.port}"'.encode()))

    with QuicServer({b"/wrong": misdirected}) as server, offering(f'Alt-Svc: h3=":{server.port}"') as tcp:
        async with trusting() as pool:
            origin = f"https://127.0.0.1:{tcp.port}"
            await pool.request("GET", origin, timeouts=SOON)
            await tcp.ended()
            response = await pool.request("GET", f"{origin}/wrong", timeouts=SOON)
            assert (response.status, response.http_version) == (200, b"HTTP/1.1")
            assert [attempt.processed for attempt in response.attempts] == ["declined"]


@pytest.mark.anyio
async def test_the_file_of_one_client_serves_the_next(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"http3": True, "verify": certificates().client_context(), "timeout": 8}
    with QuicServer() as server, offering(f'Alt-Svc: h3=":{server.port}"; ma=60') as tcp:
        for version in ("HTTP/1.1", "HTTP/3"):
            async with AsyncClient(alt_svc=AltSvcFile(tmp_path / "alt-svc"), **settings) as client:
                response = await client.get(f"https://127.0.0.1:{tcp.port}/hello")
                assert response.http_version == version


@pytest.mark.anyio
async def test_another_network_is_told_to_the_pool() -> None:
    with QuicServer() as server, offering(f'Alt-Svc: h3=":{server.port}"') as tcp:
        async with trusting() as pool:
            pool.network_changed()  # before anything was learnt
            for number in (1, 2):
                response = await pool.request("GET", f"https://127.0.0.1:{tcp.port}/hello", timeouts=SOON)
                assert response.http_version == b"HTTP/1.1"
                await tcp.ended(connections=number)
                pool.network_changed()
        assert server.connections == []
