"""Every Python snippet of the README and the docs runs, against a real server, on asyncio and trio."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from tests.docs.page import packages, snippets
from tests.integrations.needs import needed
from tests.support.hypercorn import hypercorn
from tests.support.peer import PeerConnection, scripted_peer
from tests.support.proxies import ESTABLISHED, relay

_ROOT = Path(__file__).parents[2]
_PAGES = [page for page in (_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))) if [*snippets(page)]]


class Network(NamedTuple):
    """All origins are one.

    :ivar folder: the files that the snippets name.
    """

    folder: Path
    environment: dict[str, str]


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A server that is every origin, and a proxy that leads to it whatever is asked for."""
    folder = tmp_path_factory.mktemp("reader")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    leaf = authority.issue_cert("example.org", "*.example.org", "*.example", "example.net", "example.com", "localhost")
    leaf.private_key_pem.write_to_path(folder / "client.key")
    for certificate in leaf.cert_chain_pems:
        certificate.write_to_path(folder / "client.pem", append=True)
    (folder / "big.bin").write_bytes(bytes(200_000))
    own = folder / "client.pem", folder / "client.key"
    with hypercorn("tests.docs.origin:app", certificate=own) as origin:

        def lead(connection: PeerConnection) -> None:
            if connection.read_head():
                with socket.create_connection(("127.0.0.1", origin.port)) as upstream:
                    connection.send(ESTABLISHED)
                    relay(connection, upstream)

        with scripted_peer(lead, tls=False) as proxy:
            kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
            said = {
                "ORIGIN": f"{origin.url}/",
                "ALL_PROXY": f"http://127.0.0.1:{proxy.port}",
                "NO_PROXY": "localhost",
                "SSL_CERT_FILE": str(folder / "ca.pem"),
                "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
                "PYTHONWARNINGS": "error",
            }
            yield Network(folder, {**kept, **said})


def _read(page: Path, loop: str, network: Network) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.docs.page", str(page), loop]
    return subprocess.run(
        command, cwd=network.folder, env=network.environment, capture_output=True, text=True, timeout=150
    )


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("page", _PAGES, ids=[str(page.relative_to(_ROOT)) for page in _PAGES])
def test_the_snippets_of(page: Path, loop: str, network: Network) -> None:
    """Where a page is about other people's packages, they are needed."""
    for package in packages(list(snippets(page))):
        needed(package)
    done = _read(page, loop, network)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "wrong", ["allswell.AsyncClient(no_such_setting=1)", "await client.fetch(url)", "async with client as"]
)
def test_a_snippet_that_does_not_run(wrong: str, network: Network, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n```python\nx = 1\n```\n\ntext\n\n```python\n{wrong}\n```\n")
    done = _read(page, "asyncio", network)
    assert done.returncode != 0
    assert 'page.md", line 10' in done.stderr


def test_context_is_not_needed_for_certificates() -> None:
    """What the snippets trust comes from the environment, as a user's would."""
    assert ssl.get_default_verify_paths().openssl_cafile_env == "SSL_CERT_FILE"
