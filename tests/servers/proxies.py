"""Real proxies: Apache (mod_proxy_connect; h1 and h2), tinyproxy, HAProxy before tinyproxy (h1 and h2), dante (SOCKS5).

Each runs on 127.0.0.1: without TLS on ``http_port``, with TLS on ``port``, where it has both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, needed, run, setup

_MODULES = "/usr/lib/apache2/modules"


@contextmanager
def apache_proxy() -> Iterator[ServerInfo]:
    """Apache httpd as a forward proxy."""
    program = needed("apache2")
    files = certificates()
    names = ("mpm_event", "authz_core", "ssl", "http2", "proxy", "proxy_http", "proxy_connect")
    modules = "\n".join(f"LoadModule {name}_module {_MODULES}/mod_{name}.so" for name in names)
    user = "User nobody\nGroup nogroup" if os.geteuid() == 0 else ""
    with setup() as made:
        config = made.write(
            "apache.conf",
            f"""
            ServerRoot {made.folder}
            ServerName localhost
            PidFile {made.folder}/pid
            DefaultRuntimeDir {made.folder}
            Mutex file:{made.folder} default
            ErrorLog /dev/stderr
            {modules}
            {user}
            StartServers 1
            ServerLimit 2
            ThreadsPerChild 64
            MaxRequestWorkers 128
            KeepAliveTimeout 30
            H2MinWorkers 64
            H2MaxWorkers 128
            Protocols h2 http/1.1
            H2ProxyRequests on
            ProxyRequests On
            AllowCONNECT 1-65535
            <Proxy "*">
                Require all granted
            </Proxy>
            Listen 127.0.0.1:{made.port}
            Listen 127.0.0.1:{made.http_port}
            <VirtualHost 127.0.0.1:{made.port}>
                SSLEngine on
                SSLCertificateFile {files.chain}
                SSLCertificateKeyFile {files.key}
            </VirtualHost>
            """,
        )
        command: list[str | Path] = [program, "-DFOREGROUND", "-f", config]
        with run("apache proxy", command, made, protocols=["http/1.1", "h2"]) as server:
            yield server


@contextmanager
def tinyproxy(auth: tuple[str, str] | None = None) -> Iterator[ServerInfo]:
    """tinyproxy; without TLS, on ``port``."""
    program = needed("tinyproxy")
    with setup() as made:
        words = f"BasicAuth {auth[0]} {auth[1]}" if auth else ""
        config = made.write(
            "tinyproxy.conf",
            f"""
Port {made.port}
Listen 127.0.0.1
Timeout 30
MaxClients 200
LogLevel Warning
{words}
""",
        )
        with run("tinyproxy", [program, "-d", "-c", config], made, protocols=["http/1.1"], plain=False) as server:
            yield server


@contextmanager
def haproxy_proxy() -> Iterator[ServerInfo]:
    """HAProxy, which ends TLS (and HTTP/2) and has tinyproxy behind it make the tunnels."""
    program = needed("haproxy")
    files = certificates()
    with setup() as made, tinyproxy() as behind:
        config = made.write(
            "haproxy.cfg",
            f"""
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout tunnel 30s
frontend in
    bind 127.0.0.1:{made.port} ssl crt {files.chain_and_key} alpn h2,http/1.1
    bind 127.0.0.1:{made.http_port}
    default_backend proxy
backend proxy
    server tinyproxy 127.0.0.1:{behind.port}
""",
        )
        with run("haproxy proxy", [program, "-db", "-f", config], made, protocols=["http/1.1", "h2"]) as server:
            yield server


@contextmanager
def dante() -> Iterator[ServerInfo]:
    """dante's server: SOCKS5 on ``port``, with UDP ASSOCIATE."""
    program = needed("danted")
    with setup() as made:
        config = made.write(
            "danted.conf",
            f"""
logoutput: stderr
internal: 127.0.0.1 port = {made.port}
external: 127.0.0.1
clientmethod: none
socksmethod: none
client pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: 0/0 to: 0/0 command: connect udpassociate }}
socks pass {{ from: 0/0 to: 0/0 command: udpreply }}
""",
        )
        with run("dante", [program, "-f", config], made, protocols=[], plain=False) as server:
            yield server
