"""Real servers are left in a hurry: they are told all, and no idle connection is reset, whatever they answer."""

from __future__ import annotations

from time import monotonic, sleep

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from allswell import ConnectionPool
from tests.support.capture import Capture, capture, needs_capture
from tests.support.certificates import certificates
from tests.support.servers import HELLO, ServerInfo

TIMES = 5


def answered(seen: Capture) -> None:
    """Block until the server has ended all its sides, too: what our kernel says to that follows at once."""
    until = monotonic() + 50
    while not all(seen.flags(from_client=False, client=each) for each in seen.clients()):
        assert monotonic() < until, f"the server has not ended:\n{seen}"
        sleep(0.005)  # between two looks, bounded
    seen.sync()


@needs_capture
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("lives", [True, False], ids=["the loop goes on", "the loop ends"])
@pytest.mark.parametrize("version", ["http/1.1", "h2"])
def test_cancelled(server: ServerInfo, version: str, lives: bool, loop: str) -> None:
    if version not in server.protocols:
        pytest.skip(f"{server.name} does not speak it")

    with capture(server.port, "127.0.0.1") as seen:

        async def leave() -> None:
            context = certificates().client_context()
            pool = ConnectionPool(ssl_context=context, http1=version == "http/1.1", http2=version == "h2")
            with anyio.CancelScope() as scope:
                async with pool:
                    assert await (await pool.request("GET", f"{server.url}/")).read() == HELLO
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
            assert pool.close_report is not None
            [end] = pool.close_report.connections
            *upper, tcp = [layer.said for layer in end.layers]
            assert upper == ["GOAWAY" if version == "h2" else "", "close_notify"]
            assert tcp == "FIN" or server.deaf
            if lives:
                await anyio.to_thread.run_sync(answered, seen)

        for _ in range(TIMES):
            anyio.run(leave, backend=loop)
        answered(seen)
        assert seen.clients()
        for client in seen.clients():  # (the kernel may say FIN again, where its acknowledgement is slow)
            ours = set(seen.flags(from_client=True, client=client))
            assert ours == {"FIN"} or (server.deaf and not ours), f"\n{seen}"
