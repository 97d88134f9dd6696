"""A small program that uses the client: ``python -m tests.support.fetch LOOP VERSION URL``, which prints JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import anyio

import allswell

_VERSIONS: dict[str, dict[str, Any]] = {"1": {"http2": False}, "2": {"http1": False}, "3": {"http3": "only"}}
_UPLOAD = bytes(300_000)


async def main(version: str, url: str) -> None:
    """An exchange, several at once, and an upload; and how it ended."""
    async with allswell.AsyncClient(timeout=60, grace=30, **_VERSIONS[version]) as client:
        first = await client.get(url)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(client.get, url)
        upload = await client.post(url, content=_UPLOAD)
    report = client.close_report
    assert report is not None
    print(json.dumps({"version": first.http_version, "status": upload.status_code, "clean": report.clean}))


if __name__ == "__main__":
    loop, asked_version, asked_url = sys.argv[1:]
    anyio.run(main, asked_version, asked_url, backend=loop)
