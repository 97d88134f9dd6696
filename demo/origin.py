"""The demo's origin: hypercorn in a process of its own, with a throw-away certificate, on a port that the kernel chose.

The sockets are made here, listening already, and handed to hypercorn: there is no race for a port. It says when it has
started, however long that takes; what comes a moment before it reads waits in the kernel.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

TEN_MB = 10_000_000
_PIECE = bytes(100_000)


@dataclass(frozen=True)
class Origin:
    """An origin that runs: its URL, and what a client must trust."""

    url: str
    trust: ssl.SSLContext


@contextmanager
def origin() -> Iterator[Origin]:
    """Run hypercorn with this file's application: HTTP/1.1, HTTP/2 and HTTP/3 on one port."""
    with _certificate() as (folder, trust), _sockets() as (tcp, udp):
        process = subprocess.Popen(
            [sys.executable, "-m", "demo.origin", str(folder), str(tcp.fileno()), str(udp.fileno())],
            pass_fds=(tcp.fileno(), udp.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            if not process.stdout.readline():
                raise RuntimeError("the origin ended before it had started")
            yield Origin(f"https://localhost:{tcp.getsockname()[1]}", trust)
        finally:
            process.terminate()
            process.stdout.close()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def silent_origin() -> Iterator[Origin]:
    """An origin with no manners: it answers one request, and then nothing, neither close_notify nor FIN."""
    with _certificate() as (folder, trust), socket.create_server(("127.0.0.1", 0)) as listener:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
        over = threading.Event()

        def serve() -> None:
            with context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                while not connection.recv(65536).endswith(b"\r\n\r\n"):
                    pass
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                over.wait()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield Origin(f"https://localhost:{listener.getsockname()[1]}", trust)
        finally:
            over.set()
            thread.join(3)


@contextmanager
def _certificate() -> Iterator[tuple[Path, ssl.SSLContext]]:
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    folder = Path(tempfile.mkdtemp(prefix="allswell-demo-"))
    try:
        leaf.private_key_pem.write_to_path(folder / "key.pem")
        for blob in leaf.cert_chain_pems:
            blob.write_to_path(folder / "chain.pem", append=True)
        yield folder, trust
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """TCP and UDP on one port of the loopback; TCP listens."""
    for _ in range(50):
        tcp = socket.create_server(("127.0.0.1", 0), backlog=128)
        udp = socket.socket(type=socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:  # somebody else has this port for UDP: take another
            tcp.close()
            udp.close()
            continue
        with tcp, udp:
            yield tcp, udp
        return
    raise RuntimeError("found no port that is free for both TCP and UDP")


# What runs in hypercorn's process


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """``/``: a greeting. ``/10mb``: ten megabytes. ``/slow``: an answer that takes 0.3 s."""
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                print("started", flush=True)
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    pieces, size = [b"all's well\n"], 11
    if scope["path"] == "/10mb":
        pieces, size = [_PIECE] * (TEN_MB // len(_PIECE)), TEN_MB
    elif scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    headers = [(b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


def _main(folder: str, tcp: str, udp: str) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"fd://{tcp}"]
    config.quic_bind = [f"fd://{udp}"]
    config.certfile, config.keyfile = f"{folder}/chain.pem", f"{folder}/key.pem"
    config.errorlog = None
    config.graceful_timeout = 1
    config.keep_alive_timeout = 60
    asyncio.run(serve(app, config))  # type: ignore[arg-type]  # hypercorn's own words for an ASGI application


if __name__ == "__main__":
    _main(*sys.argv[1:])
