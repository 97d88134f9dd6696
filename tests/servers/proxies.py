"""Real proxies: Apache (mod_proxy_connect; h1, h2), Squid, tinyproxy, HAProxy before it (h1, h2), dante (SOCKS5).

Each runs on 127.0.0.1: without TLS on ``http_port``, with TLS on ``port``, where it has both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.apache import apache_config
from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, needed, run, setup


@contextmanager
def apache_proxy(digest: tuple[str, str] | None = None) -> Iterator[ServerInfo]:
    """Apache httpd as a forward proxy.

    :param digest: user and password that it wants, by Digest.
    """
    program = needed("apache2")
    names = ["mpm_event", "authz_core", "ssl", "http2", "proxy", "proxy_http", "proxy_connect"]
    if digest is not None:
        names += ["authn_core", "authn_file", "authz_user", "auth_digest"]
    with setup() as made:
        access = "Require all granted"
        if digest is not None:
            name, password = digest
            secret = hashlib.md5(f"{name}:here:{password}".encode()).hexdigest()  # its only algorithm
            users = made.write("users", f"{name}:here:{secret}\n")
            access = f"AuthType Digest\nAuthName here\nAuthUserFile {users}\nRequire valid-user"
        config = apache_config(
            made,
            names,
            "KeepAliveTimeout 30\nH2MinWorkers 64\nH2MaxWorkers 128",
            "H2ProxyRequests on\nProxyRequests On\nAllowCONNECT 1-65535",
            f'<Proxy "*">\n{access}\n</Proxy>',
        )
        command: list[str | Path] = [program, "-DFOREGROUND", "-f", config]
        with run("apache proxy", command, made, protocols=["http/1.1", "h2"]) as server:
            yield server


@contextmanager
def squid(digest: tuple[str, str] | None = None) -> Iterator[ServerInfo]:
    """Squid, which speaks HTTP/1.1 only.

    :param digest: user and password that it wants, by Digest.
    """
    program = needed("squid")
    files = certificates()
    with setup() as made:
        made.folder.chmod(0o777)  # it becomes somebody else, who reads its key too
        key = made.write("key", files.key.read_text())
        access = "http_access allow all"
        if digest is not None:
            users = made.write("users", "{}:{}\n".format(*digest))
            access = f"""
auth_param digest program /usr/lib/squid/digest_file_auth {users}
auth_param digest realm here
acl known proxy_auth REQUIRED
http_access allow known
"""
        config = made.write(
            "squid.conf",
            f"""
http_port 127.0.0.1:{made.http_port}
https_port 127.0.0.1:{made.port} tls-cert={files.chain} tls-key={key}
{access}
pid_filename {made.folder}/pid
coredump_dir {made.folder}
cache_log /dev/null
access_log none
cache deny all
cache_mem 1 MB
memory_pools off
netdb_filename none
pinger_enable off
visible_hostname localhost
max_filedescriptors 1024
shutdown_lifetime 0 seconds
""",
        )
        with run("squid", [program, "-N", "-d", "1", "-f", config], made, protocols=["http/1.1"]) as server:
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
