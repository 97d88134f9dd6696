"""URLs that lead nowhere: what the errors tell, and what they keep to themselves."""

from __future__ import annotations

import pytest

from allswell import AsyncClient, ConnectionPool
from allswell._errors import LocalProtocolError

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "url",
    [
        "ftp://user:secret@host/",
        "http://user:secret@host:0/",
        "https://user:secret@host:99999/",
        "http://u:secret@[::/",
    ],
)
async def test_errors_name_no_password(url: str) -> None:
    async with ConnectionPool() as pool:
        with pytest.raises(LocalProtocolError, match=r"host|no URL") as caught:
            await pool.request("GET", url)
        assert "secret" not in str(caught.value)


async def test_nor_do_those_that_httpx2_knows() -> None:
    async with AsyncClient() as client:
        with pytest.raises(Exception, match="ftp") as caught:
            await client.get("ftp://user:secret@host/")
        assert "secret" not in str(caught.value)
