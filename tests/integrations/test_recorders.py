"""Recorders: a cassette has what the origin answered, and plays it without the origin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

import allswell
import allswell.httpx
from tests.integrations.conftest import Origin
from tests.integrations.needs import needed

pytestmark = pytest.mark.anyio

CLIENTS: dict[str, Callable[[], Any]] = {
    "AsyncClient": allswell.AsyncClient,
    "httpx2": lambda: httpx2.AsyncClient(transport=allswell.AsyncTransport()),
    "httpx": lambda: httpx.AsyncClient(transport=allswell.httpx.AsyncTransport()),
}


@pytest.mark.parametrize("client", CLIENTS)
async def test_vcrpy_records_and_plays(client: str, origin: Origin, tmp_path: Path) -> None:
    vcr = needed("vcr")
    answers = []
    for _ in range(2):
        with vcr.use_cassette(str(tmp_path / "cassette.yaml")) as cassette:
            async with CLIENTS[client]() as made:
                response = await made.post(f"{origin.url}/page", content=b"question")
                answers.append((response.status_code, response.headers["content-type"], response.content))
    assert answers[0] == answers[1]
    assert b'"question"' in answers[0][2]
    assert cassette.play_count == 1
    assert len(origin.requests) == 1
