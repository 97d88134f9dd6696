"""Programs that a signal ends: ``python -m tests.shutdown.program LOOP URL CA COUNT GRACE``; and an ASGI application.

The program sends COUNT requests at once, and says on standard output what became of each, and how all ended.
"""

from __future__ import annotations

import os
import ssl
import sys
from typing import Any

import anyio

import allswell


async def main(url: str, ca: str, count: int, grace: float) -> None:
    """Work until told to stop."""
    verify = ssl.create_default_context(cafile=ca)
    async with (
        allswell.AsyncClient(verify=verify, timeout=60) as client,
        allswell.drain_on_signal(client, grace=grace) as stopping,
        anyio.create_task_group() as tasks,
    ):
        for number in range(count):
            tasks.start_soon(_get, client, f"{url}/{number}")
        await stopping.wait()
        print("stopping", flush=True)
        await anyio.sleep_forever()
    assert client.close_report is not None
    print("clean" if client.close_report.clean else "not clean", flush=True)


async def _get(client: allswell.AsyncClient, url: str) -> None:
    try:
        response = await client.get(url)
    except allswell.AllswellError as error:
        print("failed", error, flush=True)
    except Exception as error:  # noqa: BLE001  that is what is told
        print("failed", type(error).__name__, flush=True)
    else:
        print("got", response.text, flush=True)


_life = allswell.lifespan(
    lambda: allswell.AsyncClient(verify=ssl.create_default_context(cafile=os.environ["CA"]), timeout=600),
    grace=30,
    within=float(os.environ["WITHIN"]) if "WITHIN" in os.environ else None,
    on_close=lambda report: print("clean" if report.clean else "not clean", flush=True),
)
_state: dict[str, allswell.AsyncClient] = {}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """It asks the origin of the test for whatever it is asked for."""
    if scope["type"] == "lifespan":
        await receive()
        async with _life(app) as state:
            _state.update(state)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    response = await _state["client"].get(os.environ["ORIGIN"] + scope["path"])
    fields = [(b"content-length", b"%d" % len(response.content))]
    await send({"type": "http.response.start", "status": response.status_code, "headers": fields})
    await send({"type": "http.response.body", "body": response.content})


if __name__ == "__main__":
    loop, *arguments = sys.argv[1:]
    anyio.run(main, arguments[0], arguments[1], int(arguments[2]), float(arguments[3]), backend=loop)
