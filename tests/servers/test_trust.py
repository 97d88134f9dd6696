"""Who is connected to, and who connects, with a server that nobody here wrote: names, keys, addresses, certificates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from allswell import AddressNotAllowed, ClientCertificate, ConnectionPool, Hosts, PinMismatch, PublicAddresses
from tests.pool.test_pins import OTHER, pin
from tests.servers.caddy import run_caddy
from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, setup

pytestmark = pytest.mark.anyio

VERSIONS: dict[str, dict[str, Any]] = {"HTTP/1.1": {"http2": False}, "HTTP/2": {}, "HTTP/3": {"http3": "only"}}


@contextmanager
def caddy() -> Iterator[ServerInfo]:
    """It says whom it was shown a certificate of, and speaks to nobody else."""
    files = certificates()
    with setup() as made:
        sites = f"""
            https://name.example:{made.port} {{
                bind 127.0.0.1
                tls {files.chain} {files.key} {{
                    client_auth {{
                        mode require_and_verify
                        trusted_ca_cert_file {files.ca}
                    }}
                }}
                respond "{{http.request.tls.client.fingerprint}}"
            }}
            http://:{made.http_port} {{
                bind 127.0.0.1
                respond "here"
            }}
            """
        with run_caddy(made, sites) as server:
            yield server


@pytest.fixture(scope="module")
def server() -> Iterator[ServerInfo]:
    """One for all tests."""
    with caddy() as made:
        yield made


@pytest.mark.parametrize("version", VERSIONS)
async def test_caddy(version: str, server: ServerInfo) -> None:
    from cryptography.hazmat.primitives.hashes import SHA256

    ours = ClientCertificate(certificates().client.read_bytes())
    settings: dict[str, Any] = {
        "cert": ours,
        "resolver": Hosts({"name.example": "127.0.0.1"}),
        "pins": {"name.example": pin(certificates())},
        **VERSIONS[version],
    }
    url = f"https://name.example:{server.port}/"

    def pool(**other: Any) -> ConnectionPool:
        return ConnectionPool(ssl_context=certificates().client_context(), **{**settings, **other})

    async with pool() as good:
        response = await good.request("GET", url)
        assert response.http_version.decode() == version
        assert (await response.read()).decode() == ours.chain[0].fingerprint(SHA256()).hex()
    assert good.close_report is not None
    assert good.close_report.clean
    async with pool(pins={"name.example": OTHER}) as unpinned:
        with pytest.raises(PinMismatch):
            await unpinned.request("GET", url)
    async with pool(allow_address=PublicAddresses()) as outside:
        with pytest.raises(AddressNotAllowed):
            await outside.request("GET", url)
    async with pool(allow_address=PublicAddresses(["127.0.0.1"])) as inside:
        assert (await inside.request("GET", url)).status == 200
