"""Apache httpd (event MPM, mod_http2): h1, h2."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, Setup, needed, run, setup, signal_reload

_MODULES = "/usr/lib/apache2/modules"


def apache_config(made: Setup, modules: Iterable[str], *rest: str) -> Path:
    """Write a configuration file: TLS on ``port``, none on ``http_port``, h2 and http/1.1.

    :param rest: what is special.
    """
    files = certificates()
    # Apache will not serve as root: its workers become nobody.
    user = "User nobody\nGroup nogroup" if os.geteuid() == 0 else ""
    loaded = "\n".join(f"LoadModule {name}_module {_MODULES}/mod_{name}.so" for name in modules)
    special = "\n".join(rest)
    return made.write(
        "apache.conf",
        f"""
        ServerRoot {made.folder}
        ServerName localhost
        PidFile {made.folder}/pid
        DefaultRuntimeDir {made.folder}
        Mutex file:{made.folder} default
        ErrorLog /dev/stderr
        {loaded}
        {user}
        StartServers 1
        ServerLimit 2
        ThreadsPerChild 64
        MaxRequestWorkers 128
        Protocols h2 http/1.1
        {special}
        Listen 127.0.0.1:{made.port}
        Listen 127.0.0.1:{made.http_port}
        <VirtualHost 127.0.0.1:{made.port}>
            SSLEngine on
            SSLCertificateFile {files.chain}
            SSLCertificateKeyFile {files.key}
        </VirtualHost>
        """,
    )


@contextmanager
def apache(requests_per_connection: int = 0, keepalive: str = "30") -> Iterator[ServerInfo]:
    """Run it.

    :param requests_per_connection: 0 means as many as one likes.
    :param keepalive: seconds that an idle connection is kept, as responses say, too.
    """
    program = needed("apache2")
    with setup() as made:
        config = apache_config(
            made,
            ("mpm_event", "authz_core", "dir", "mime", "ssl", "http2"),
            f"KeepAlive On\nKeepAliveTimeout {keepalive}\nMaxKeepAliveRequests {requests_per_connection}",
            f"TypesConfig /dev/null\nDocumentRoot {made.www}\nDirectoryIndex index.html",
        )
        with run(
            "apache",
            [program, "-DFOREGROUND", "-f", config],
            made,
            protocols=["http/1.1", "h2"],
            reload=signal_reload(signal.SIGUSR1),
            quit_signal=signal.SIGWINCH,
        ) as server:
            yield server
