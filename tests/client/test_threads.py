"""Several threads, each with its own event loop and client: they import and connect at once, and share some things."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from threading import Barrier, Event, Thread
from time import time

import anyio
import pytest

from allswell import Alternative, AltSvcFile, AltSvcMemory, AsyncClient, QuicMemory
from allswell.testing import Origin, Response

#: One thread imports one of these, or begins with a request, in this event loop and by this version of HTTP.
_PROGRAM = """
import sys, threading, traceback
from importlib import import_module
url, ca_file, *kinds = sys.argv[1:]
sys.setswitchinterval(1e-6)
settings = {"h1": {"http2": False}, "h2": {"http1": False}, "h3": {"http3": "only"}}
begin, failed = threading.Barrier(len(kinds)), []

def run(first, loop, version):
    begin.wait()
    try:
        import_module(first)
        import allswell, anyio, ssl

        async def main():
            context = ssl.create_default_context(cafile=ca_file)
            async with allswell.AsyncClient(verify=context, timeout=60, grace=30, **settings[version]) as client:
                for _ in range(3):
                    assert (await client.get(url)).text == "x"
            assert client.close_report.clean, str(client.close_report)

        import_module(loop).run(main()) if loop == "asyncio" else import_module(loop).run(main)
    except BaseException:
        failed.append(traceback.format_exc())

threads = [threading.Thread(target=run, args=kind.split()) for kind in kinds]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*failed, sep="\\n", end="")
"""


def test_threads_import_and_use_it_at_once() -> None:
    """The first use of a thing imports it, in whichever thread that is."""
    ways = [(loop, version) for loop in ("asyncio", "trio") for version in ("h1", "h2", "h3")]
    firsts = ["allswell", "allswell.httpx", "allswell.otel", "allswell.testing", "allswell", "allswell.httpx"]
    kinds = [f"{first} {loop} {version}" for first, (loop, version) in zip(firsts, ways, strict=True)]
    with Origin({"/x": Response(body=b"x")}) as origin:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", _PROGRAM, f"{origin.url}/x", str(origin.ca_file), *kinds],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
            capture_output=True,
            text=True,
        )
        assert (done.stdout, done.stderr) == ("", "")
        origin.assert_ended_gracefully(30)


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*functions: Callable[[], object]) -> list[BaseException]:
    """Call each in a thread; return what they raised."""
    begin, raised = Barrier(len(functions)), list[BaseException]()

    def call(function: Callable[[], object]) -> None:
        begin.wait()
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - returned
            raised.append(error)

    threads = [Thread(target=call, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_a_token_is_given_to_one_thread_only(hasty: None) -> None:
    store = QuicMemory(servers=2, per_server=2)
    given: list[bytes] = []

    def use(thread: int) -> None:
        for number in range(1500):
            store.put_token(f"server {number % 4}", b"%d of %d" % (number, thread))
            if (token := store.take_token(f"server {(number + thread) % 4}")) is not None:
                given.append(token)

    assert at_once(*(partial(use, thread) for thread in range(4))) == []
    assert len(given) == len(set(given))


@pytest.mark.parametrize("file", [False, True], ids=["memory", "file"])
def test_threads_share_alternatives(file: bool, hasty: None, tmp_path: Path) -> None:
    store = AltSvcFile(tmp_path / "alt-svc", origins=20) if file else AltSvcMemory(origins=20)

    def learn(thread: int) -> None:
        for number in range(300 if file else 3000):
            origin = f"https://{number * (thread + 1) % 40}.example"
            store.put(origin, [Alternative("alt.example", 443, time() + 60)] if number % 3 else [])
            assert len(store.get(origin)) <= 1
            if not number % 10:
                store.flush()
            assert len(store.origins()) <= 20

    assert at_once(*(partial(learn, thread) for thread in range(4))) == []
    assert not list(tmp_path.glob("alt-svc?*"))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_threads_share_a_context_and_not_its_protocols(backend: str) -> None:
    """A context is told what to offer, and then makes a connection that offers it: no other comes between."""
    begun, in_between = Event(), Event()

    class Slow(ssl.SSLContext):
        def set_alpn_protocols(self, protocols: Iterable[str]) -> None:
            super().set_alpn_protocols(protocols)
            if "h2" in protocols:
                in_between.set()
            else:
                begun.set()
                in_between.wait(0.5)  # in vain: its connection comes first

    context = Slow(ssl.PROTOCOL_TLS_CLIENT)
    versions: dict[str, str] = {}

    def get(version: str) -> None:
        async def main() -> None:
            async with AsyncClient(verify=context, **{version: False}) as client:  # type: ignore[arg-type]
                versions[version] = (await client.get(origin.url)).http_version

        anyio.run(main, backend=backend)

    def second() -> None:
        assert begun.wait(30)
        get("http1")

    with Origin(versions=["h1", "h2"]) as origin:
        context.load_verify_locations(origin.ca_file)
        assert at_once(partial(get, "http2"), second) == []
        assert versions == {"http2": "HTTP/1.1", "http1": "HTTP/2"}
        origin.assert_ended_gracefully(30)
