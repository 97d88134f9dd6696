"""Bodies in tiny pieces: a window counts bytes, so what waits in it must cost about as many."""

from __future__ import annotations

import anyio
import pytest

from allswell._config import Timeouts
from tests.versions.peers import VERSIONS, Side, serving

pytestmark = pytest.mark.anyio

_COUNT = 3000


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_waits_to_be_read_is_put_together(version: str) -> None:
    body = b"".join(b"%04d" % number for number in range(_COUNT))

    def handler(side: Side) -> None:
        side.head(200)
        for start in range(0, len(body), 4):
            side.data(body[start : start + 4], end=start == len(body) - 4)

    with serving(version, handler) as server:
        async with (
            server.pool() as pool,
            pool.stream("GET", f"{server.url}/", timeouts=Timeouts(read=20, total=30)) as response,
        ):
            exchange = response._exchange
            with anyio.fail_after(20):
                while exchange.body.buffered < len(body):  # noqa: ASYNC110  # it is told to whoever reads
                    await anyio.sleep(0.01)
            pieces = []
            while piece := await response.receive():
                pieces.append(piece)
            assert b"".join(pieces) == body
            assert len(pieces) < 50
            assert exchange.body.buffered == 0
