"""Where URLs lead: IPv6 zones; and nowhere: what the errors tell, and what they keep to themselves."""

from __future__ import annotations

import pytest

from allswell import AsyncClient, ConnectionPool
from allswell._errors import ConnectFailed, LocalProtocolError
from tests.support.certificates import certificates
from tests.support.h2_script import Http2Server, h2_tls
from tests.support.peer import scripted_peer
from tests.support.quic_server import QuicServer, ServedConnection
from tests.support.scripts import answers

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
        with pytest.raises(LocalProtocolError, match=r"host|not a URL") as caught:
            await pool.request("GET", url)
        assert "secret" not in str(caught.value)


async def test_nor_do_those_that_httpx2_knows() -> None:
    async with AsyncClient() as client:
        with pytest.raises(Exception, match="ftp") as caught:
            await client.get("ftp://user:secret@host/")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("zone", ["%25lo", "%lo"])
async def test_zone_is_for_this_machine_only(zone: str) -> None:
    """RFC 6874 §4: it says by which interface, and the server is not told."""
    with scripted_peer(answers(), host="::1") as peer:
        url = f"http://[::1{zone}]:{peer.port}/a"
        async with AsyncClient() as client:
            assert (await client.get(url)).text == "/a"
        async with ConnectionPool() as pool:
            assert await (await pool.request("GET", url)).read() == b"/a"
        await peer.ended(connections=2)
        for connection in peer.connections:
            [request] = connection.requests
            assert f"Host: [::1]:{peer.port}\r\n".lower() in request.decode().lower()
            assert b"%" not in request


async def test_zone_and_certificate() -> None:
    """The certificate is for the address."""
    with scripted_peer(Http2Server(), tls=h2_tls(), host="::1") as peer:
        async with AsyncClient(verify=certificates().client_context()) as client:
            assert (await client.get(f"https://[::1%25lo]:{peer.port}/a")).text == "/a"


async def test_zone_over_quic() -> None:
    """Neither in the request, nor where the certificate is looked at."""
    authorities: list[bytes] = []

    def whom(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        authorities.append(fields[b":authority"])
        connection.respond(stream, 200, b"hello")

    with QuicServer({b"/whom": whom}, host="::1") as server:
        async with ConnectionPool(ssl_context=certificates().client_context(), http3="only") as pool:
            assert (await pool.request("GET", f"https://[::1%25lo]:{server.port}/whom")).status == 200
    assert authorities == [b"[::1]:%d" % server.port]


@pytest.mark.parametrize("zone", ["", "%25", "%25a b", "%25lo%00", "%25lo/x"])
async def test_zone_that_is_none(zone: str) -> None:
    async with ConnectionPool() as pool:
        with pytest.raises((LocalProtocolError, ConnectFailed)) as caught:
            await pool.request("GET", f"http://[::1{zone or '%25nope'}]:1/")
        assert "ExceptionGroup" not in str(caught.value)
        assert "::1" in str(caught.value)


async def test_setting_that_the_system_refuses() -> None:
    """The error is the first of what the task group made of it."""
    async with ConnectionPool(socket_options=((-1, -1, -1),), local_address="127.0.0.1") as pool:
        with pytest.raises(ConnectFailed) as caught:
            await pool.request("GET", "http://127.0.0.1:1/")
        assert "Group" not in str(caught.value)
