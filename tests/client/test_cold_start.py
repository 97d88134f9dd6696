"""What is not imported until it is needed: programs that make one request wait for it."""

from __future__ import annotations

import ast
import inspect
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import allswell
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
    "allswell._capsules",
    "allswell._connect_udp",
    "allswell._dial.dns_over_https",
    "allswell._dial.proxy",
    "allswell._filters.http_connect",
    "allswell._filters.socks",
    "allswell._filters.udp",
    "allswell._har.recording",
    "allswell._operations",
    "allswell._pool.snapshot",
    "allswell._quic",
    "allswell._quic_store",
    "allswell._request.datagrams",
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
    "backports",  # httpx2 looks for backports.zstd
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


def imports(source: str) -> Iterator[str]:
    """The modules that a file imports, from its top down; not those for type checkers."""
    tree = ast.parse(source)
    checked = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    for node in sorted((node for node in found if id(node) not in checked), key=lambda node: node.lineno):
        yield from [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]


def test_a_package_is_imported_before_those_of_its_modules_that_it_imports_itself() -> None:
    """A thread that imports the package, and one that begins with the module, would each wait for the other."""
    files = {str(path): list(imports(path.read_text())) for path in Path(allswell.__file__).parent.rglob("*.py")}
    tops = {name.partition(".")[0] for names in files.values() for name in names if "." in name}
    tops -= {"allswell", *sys.stdlib_module_names}
    program = "import sys; __import__({top!r}); print(*sys.modules)"
    brought = {top: set(run(program.format(top=top)).split()) for top in tops}
    early = [
        f"{file}: {name}"
        for file, names in files.items()
        for place, name in enumerate(names)
        if name in brought.get(top := name.partition(".")[0], ()) and name != top and top not in names[:place]
    ]
    assert early == []
    assert "hpack.table" in brought["hpack"]  # so it would be seen
