"""Memory stays flat, whatever the size of a body: measured in a process of its own, from outside it all is one page."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.peer import PeerConnection, scripted_peer
from tests.support.scripts import response

_LIMIT = 64 * 1024 * 1024

_CLIENT = """
import resource, sys, anyio, allswell

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

async def download(url, size):
    async with allswell.AsyncClient(timeout=30) as client:
        await client.get(url + "/small")
        start = peak()
        got = 0
        async with client.stream("GET", url + "/big") as response:
            async for piece in response.aiter_raw():
                got += len(piece)
                if got < 4_000_000:
                    await anyio.sleep(0.002)  # the slow reader: the server is far ahead of it from here on
    assert got == size, got
    print(peak() - start)

async def upload(url, size):
    async def pieces():
        piece = bytes(65536)
        for _ in range(size // 65536):
            yield piece
    async with allswell.AsyncClient(timeout=30) as client:
        await client.get(url + "/small")
        start = peak()
        response = await client.post(url + "/big", content=pieces(), headers={"Content-Length": str(size)})
        assert response.text == str(size), response.text
    print(peak() - start)

anyio.run(globals()[sys.argv[1]], sys.argv[2], int(sys.argv[3]), backend=sys.argv[4])
"""


def _grown(what: str, url: str, size: int, backend: str) -> int:
    command = [sys.executable, "-c", _CLIENT, what, url, str(size), backend]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=150).stdout)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_slow_reader_of_a_gigabyte(backend: str) -> None:
    size = 1 << 30

    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(response(b""))
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        part = bytes(1 << 20)
        for _ in range(size >> 20):
            connection.send(part)

    with scripted_peer(script) as peer:
        assert _grown("download", peer.url, size, backend) < _LIMIT


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_upload_of_200_megabytes(backend: str) -> None:
    size = 3200 * 65536

    def script(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(response(b""))
        connection.read_head()
        got = 0
        while got < size and (data := connection.recv()):
            got += len(data)
        connection.send(response(b"%d" % got))

    with scripted_peer(script) as peer:
        assert _grown("upload", peer.url, size, backend) < _LIMIT
