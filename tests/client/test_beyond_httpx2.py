"""What httpx2 has wrong above a transport, and allswell mends: gzip of several members, a proxy's credentials."""

from __future__ import annotations

import gzip
import pickle
import random
import zlib
from typing import Any

import httpx2
import pytest

from allswell import AsyncClient, AsyncTransport, _gzip
from tests.support.peer import PeerConnection, Script, scripted_peer
from tests.support.scripts import answers, response, target

pytestmark = pytest.mark.anyio

TEXTS = [b"first, ", b"second, " * 5000, b"", b"third"]
MEMBERS = b"".join(map(gzip.compress, TEXTS))


async def decoded(
    content: bytes, *, pieces: int | None = None, coding: str = "gzip", client: Any = AsyncClient
) -> bytes:
    script = answers(body=lambda _: content, fields=(f"Content-Encoding: {coding}",), pieces=pieces)
    with scripted_peer(script) as peer:
        async with client() as made:
            read: bytes = (await made.get(peer.url)).content
            return read


@pytest.mark.parametrize("pieces", [None, 1, 7])
async def test_all_members_are_read(pieces: int | None) -> None:
    """RFC 1952 §2.2: a file is a series of members; servers send several where they append to a file, or flush one."""
    assert await decoded(MEMBERS, pieces=pieces) == b"".join(TEXTS)


async def test_under_httpx2s_own_client() -> None:
    assert await decoded(MEMBERS, client=lambda: httpx2.AsyncClient(transport=AsyncTransport())) == b"".join(TEXTS)


async def test_one_of_several_codings() -> None:
    assert await decoded(zlib.compress(MEMBERS), coding="gzip, deflate") == b"".join(TEXTS)


async def test_a_large_member_stays_bounded() -> None:
    """Each piece that a reader is given is as large as httpx2 lets it be."""
    content = gzip.compress(bytes(8_000_000)) + gzip.compress(b"end")
    script = answers(body=lambda _: content, fields=("Content-Encoding: gzip",))
    with scripted_peer(script) as peer:
        async with AsyncClient() as client, client.stream("GET", peer.url) as answer:
            sizes = [len(piece) async for piece in answer.aiter_bytes()]
    assert sum(sizes) == 8_000_003
    assert max(sizes) <= 1 << 20


@pytest.mark.parametrize("pieces", [None, 1])
@pytest.mark.parametrize("rest", [b"\0" * 512, b"not gzip", b"\x1f", b"\x1fx"])
async def test_what_is_no_member_is_ignored(rest: bytes, pieces: int | None) -> None:
    assert await decoded(MEMBERS + rest, pieces=pieces) == b"".join(TEXTS)


async def test_broken_member() -> None:
    broken = bytearray(gzip.compress(b"second"))
    broken[-5] ^= 1  # of its checksum
    with pytest.raises(httpx2.DecodingError):
        await decoded(gzip.compress(b"first") + broken)


async def test_many_members_that_come_together_cost_no_more_than_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """zlib copies what it is given and does not consume: if that is all of it each time, the loop is held for long."""
    copied: list[int] = []
    new_member = _gzip._member

    class Counted:
        def __init__(self) -> None:
            self._member = new_member()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._member, name)

        def decompress(self, data: bytes, max_length: int) -> bytes:
            decompressed = self._member.decompress(data, max_length)
            copied.append(len(self._member.unused_data) + len(self._member.unconsumed_tail))
            return decompressed

    monkeypatch.setattr(_gzip, "_member", Counted)
    large = gzip.compress(bytes(range(256)) * 400 + random.Random(1).randbytes(100_000))
    assert await decoded(gzip.compress(b"x") * 20_000 + large + gzip.compress(b"y") * 10) == (
        b"x" * 20_000 + bytes(range(256)) * 400 + random.Random(1).randbytes(100_000) + b"y" * 10
    )
    assert sum(copied) < 16 * 1024 * 20_000
    assert len(copied) < 3 * 20_000


def test_what_follows_the_last_member_is_not_kept() -> None:
    members = _gzip._Members()
    assert members.decompress(gzip.compress(b"all") + b"!" * 1000, 1 << 20) == b"all"
    for _ in range(2):
        assert members.decompress(b"!" * 1000, 1 << 20) == b""
        assert members._input == b""


async def test_members_without_content_are_bounded() -> None:
    with pytest.raises(httpx2.DecodingError, match="empty members in a row"):
        await decoded(gzip.compress(b"") * 100_000)


async def test_response_can_be_pickled() -> None:
    with scripted_peer(answers(body=lambda _: MEMBERS, fields=("Content-Encoding: gzip",))) as peer:
        async with AsyncClient() as client:
            answer = await client.get(peer.url)
    assert pickle.loads(pickle.dumps(answer)).content == b"".join(TEXTS)


def redirects(to: str) -> Script:
    def script(connection: PeerConnection) -> None:
        while request := connection.read_request():
            connection.send(
                response(b"", f"Location: {to}", status="302 Found") if target(request) == b"/from" else response(b"ok")
            )

    return script


@pytest.mark.parametrize("elsewhere", [True, False])
async def test_a_proxys_credentials_do_not_go_to_another_origin(elsewhere: bool) -> None:
    with (
        scripted_peer(answers()) as other,
        scripted_peer(redirects(f"{other.url}/to" if elsewhere else "/to")) as first,
    ):
        async with AsyncClient(follow_redirects=True, trust_env=False) as client:
            headers = {"Proxy-Authorization": "Basic c2VjcmV0", "Authorization": "Basic c2VjcmV0"}
            await client.get(f"{first.url}/from", headers=headers)
        last = (other if elsewhere else first).connections[-1].requests[-1]
    assert b"/to " in last
    for field in (b"\r\nauthorization: ", b"\r\nproxy-authorization: "):
        assert (field in last.lower()) is not elsewhere
