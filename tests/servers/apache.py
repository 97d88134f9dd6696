"""Apache httpd (event MPM, mod_http2): h1, h2."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, needed, run, setup, signal_reload

_MODULES = "/usr/lib/apache2/modules"


@contextmanager
def apache(requests_per_connection: int = 0, keepalive: str = "30") -> Iterator[ServerInfo]:
    """Run it.

    :param requests_per_connection: 0 means as many as one likes.
    :param keepalive: seconds that an idle connection is kept, as responses say, too.
    """
    program = needed("apache2")
    files = certificates()
    modules = "\n".join(
        f"LoadModule {name}_module {_MODULES}/mod_{name}.so"
        for name in ("mpm_event", "authz_core", "dir", "mime", "ssl", "http2")
    )
    # Apache will not serve as root: its workers become nobody.
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
            TypesConfig /dev/null
            StartServers 1
            ServerLimit 2
            ThreadsPerChild 64
            MaxRequestWorkers 128
            KeepAlive On
            KeepAliveTimeout {keepalive}
            MaxKeepAliveRequests {requests_per_connection}
            Protocols h2 http/1.1
            DocumentRoot {made.www}
            DirectoryIndex index.html
            Listen 127.0.0.1:{made.port}
            Listen 127.0.0.1:{made.http_port}
            <VirtualHost 127.0.0.1:{made.port}>
                SSLEngine on
                SSLCertificateFile {files.chain}
                SSLCertificateKeyFile {files.key}
            </VirtualHost>
            """,
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
