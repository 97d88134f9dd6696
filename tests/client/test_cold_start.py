"""What is not imported until it is needed: programs that make one request wait for it."""

from __future__ import annotations

import inspect
import os
import ssl
import subprocess
import sys
from typing import Any

import pytest

from allswell._filters import keylog
from allswell.testing import Origin, Response
from tests.support.certificates import certificates

LATE = (
    "trio",
    "httpcore2",
    "h11",
    "h2.connection",
    "hpack",
    "aioquic",
    "pylsqpack",
    "cryptography",
    "service_identity",
    "dns",
    "rich",
    "socksio",
    "allswell._pool.snapshot",
    "allswell._quic_store",
)


def run(program: str, **environment: str) -> str:
    path = os.pathsep.join(each for each in sys.path if each)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    return result.stdout.strip()


#: Others' packages that every request may need, and what httpx2 imports itself.
NEEDED = {
    "anyio",
    "exceptiongroup",
    "httpx2",
    "idna",
    "sniffio",
    "typing_extensions",
}


@pytest.mark.parametrize("module", ["allswell", "allswell._cli"])
def test_an_import_costs_what_is_used(module: str) -> None:
    program = f"""
import sys
before = set(sys.modules)
import {module}
found = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(found - set(sys.stdlib_module_names) - {{"allswell"}} - {NEEDED!r}))
"""
    assert run(program) == "[]"


@pytest.mark.parametrize("verify", ["verify=True", "verify=ssl.create_default_context()", "trust_env=False"])
def test_a_first_request_imports_little(verify: str) -> None:
    program = f"""
import asyncio, ssl, sys
import allswell
late = {LATE!r}
print([name for name in late if name in sys.modules])
async def main():
    async with allswell.AsyncClient({verify}) as client:
        response = await client.get(URL)
        print(response.text, [name for name in late if name in sys.modules])
        stream = response.extensions["network_stream"]
        print(isinstance(stream, str), [name for name in late if name in sys.modules])
        import httpcore2
        print(isinstance(stream, httpcore2.AsyncNetworkStream), isinstance(stream, allswell._transport.RawStream))
        print(isinstance(stream, httpcore2.NetworkStream))
asyncio.run(main())
"""
    with Origin({"/x": Response(body=b"x")}, tls=False) as origin:
        told = run(program.replace("URL", repr(f"{origin.url}/x")))
    assert told.splitlines() == ["[]", "x []", "False []", "True True", "False"]


@pytest.mark.parametrize("trust_env", [False, True])
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "NONE"])
def test_the_default_context_is_httpx2s(variable: str, trust_env: bool) -> None:
    files = certificates()
    program = f"""
import sys
from allswell._filters.keylog import new_context
def told(context):
    names = ("options", "verify_mode", "verify_flags", "check_hostname")
    certificates = sorted(str(each) for each in context.get_ca_certs())
    return certificates, [getattr(context, name) for name in names], type(context).__name__
short = new_context(trust_env={trust_env})
assert "httpcore2" not in sys.modules
import httpcore2
long = new_context(trust_env={trust_env})
assert told(short) == told(long)
print(type(short).__module__ == type(long).__module__, len(told(short)[0]) == 1)
"""
    given = {variable: str(files.ca)}
    if variable == "SSL_CERT_DIR":
        given = {variable: str(files.ca.parent)}
    told = run(program, **given)
    assert told == f"True {variable == 'SSL_CERT_FILE' and trust_env}"


def test_private_names_of_httpcore2() -> None:
    """A canary: the function that is taken out of it. Where it fails, httpx2 makes the context, and imports more."""
    default: Any = keylog._default_context()
    assert default is not None
    assert list(inspect.signature(default).parameters) == ["_trust_env"]
    assert isinstance(default(), ssl.SSLContext)
