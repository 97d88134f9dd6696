"""The servers of the local matrix: how each is started for a case, and which cases it can play.

Each is started afresh for every case, on the loopback, with the case's certificate and files. Those of ``make peers``
come first, which unpacks a newer Debian into ``.peers``: nginx, HAProxy and ngtcp2 run from there, through its own
dynamic linker, without being installed. Else they are this machine's, where those are new enough.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PEERS = Path(__file__).parent.parent / ".peers" / "trixie"

#: What a case can ask of a server besides serving files (see ``cases.py``).
PLAIN = frozenset({"", "chacha20", "ipv6", "chain"})


@dataclass(frozen=True)
class Site:
    """What a server is to serve, and where.

    :ivar mode: what the case asks of it: ``""``, ``"retry"``, ``"v2"``, ``"chacha20"``, ``"preferred"``, …
    :ivar preferred: what to announce as its preferred address; it listens on ``second_port`` for it.
    """

    mode: str
    alpn: str
    host: str
    port: int
    second_port: int
    www: Path
    certs: Path
    folder: Path
    preferred: tuple[str, int] | None = None

    @property
    def address(self) -> str:
        """Host and port as configurations want them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def write(self, name: str, text: str) -> Path:
        """A configuration file."""
        path = self.folder / name
        path.write_text(text)
        return path


Command = Sequence[str | Path]


@dataclass(frozen=True)
class Server:
    """A server implementation.

    :ivar alpn: ``"hq-interop"`` where it can, else ``"h3"``.
    :ivar modes: what it can play.
    :ivar program: finds it; ``None`` where it is not installed.
    :ivar command: how to start it.
    :ivar announces_itself: the preferred address that it announces is one that it listens on, so the relay cannot stand
        in for it: what goes there is only overheard.
    :ivar source: how it is had.
    :ivar newer: modes for which it must be a newer one, and what ``--help`` of that has.
    """

    name: str
    alpn: str
    modes: frozenset[str]
    program: Callable[[], list[str] | None]
    command: Callable[[Site, list[str]], Command]
    source: str = "make peers"
    announces_itself: bool = False
    newer: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def run(self, site: Site) -> Iterator[None]:
        """Run it until the block is left; enter it when it answers.

        :raises RuntimeError: when it does not; with what it wrote.
        """
        program = self.program()
        assert program is not None
        log_path = site.folder / "server.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [str(word) for word in self.command(site, program)],
                cwd=site.folder,
                env=os.environ | {"XDG_DATA_HOME": str(site.folder), "XDG_CONFIG_HOME": str(site.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _await_answer(process, site, log_path)
            yield
        finally:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own group: it was started in a session of its own
                process.wait()


def _await_answer(process: subprocess.Popen[bytes], site: Site, log: Path) -> None:
    """Ask in a version that nobody speaks until Version Negotiation says that somebody is there (RFC 9000 §6.1)."""
    question = bytes.fromhex("c01a2a3a4a08") + os.urandom(8) + b"\x08" + os.urandom(8)
    question += bytes(1200 - len(question))
    deadline = time.monotonic() + 10
    family = socket.AF_INET6 if ":" in site.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        sock.connect((site.host, site.port))
        while process.poll() is None and time.monotonic() < deadline:
            try:
                sock.send(question)
                sock.recv(2000)
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.02)  # between two questions; nothing tells us when a stranger starts to listen
            else:
                return
    raise RuntimeError(
        f"the server does not answer (exit {process.poll()}):\n{log.read_text(errors='replace')[-2000:]}"
    )


# One by one


def says(program: Sequence[str], option: str, word: str) -> bool:
    """Whether the program, asked with this option, says this word."""
    asked = subprocess.run([*program, option], capture_output=True, text=True, errors="replace", check=False)
    return word in asked.stdout + asked.stderr


def _installed(name: str, option: str = "", word: str = "") -> list[str] | None:
    """This machine's, if it says the word when it is asked with the option."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"]
    path = shutil.which(name, path=os.pathsep.join(folders))
    return [path] if path is not None and (not option or says([path], option, word)) else None


def _peer(name: str) -> list[str] | None:
    """A program of ``make peers``, by its own dynamic linker and libraries."""
    program = next(
        (PEERS / "usr" / each / name for each in ("sbin", "bin") if (PEERS / "usr" / each / name).exists()), None
    )
    loader = next((PEERS / "usr").glob("lib*/ld-linux-*"), None)
    if program is None or loader is None:
        return None
    libraries = ":".join(str(each) for each in (PEERS / "usr/lib").glob("*-linux-gnu"))
    return [str(loader), "--library-path", libraries, str(program)]


def _caddy(site: Site, program: list[str]) -> Command:
    config = site.write(
        "Caddyfile",
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
        https://:{site.port} {{
            bind {site.host}
            tls {site.certs}/cert.pem {site.certs}/priv.key
            root * {site.www}
            file_server
        }}
        """,
    )
    return [*program, "run", "--config", config, "--adapter", "caddyfile"]


def _gtlsserver(site: Site, program: list[str]) -> Command:
    options: list[str | Path] = ["--htdocs", site.www, "--qlog-dir", site.folder, "--quiet", "--max-dyn-length", "20M"]
    if site.mode == "retry":
        options.append("--validate-addr")
    if site.mode == "chacha20":
        options.append("--ciphers=NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305")
    if site.mode == "v2":
        options += ["--preferred-versions=v2,v1", "--available-versions=v1,v2"]
    if site.mode == "preferred" and site.preferred is not None:
        options.append("--preferred-ipv4-addr={}:{}".format(*site.preferred))
    return [*program, *options, site.host, str(site.port), site.certs / "priv.key", site.certs / "cert.pem"]


def _nginx(site: Site, program: list[str]) -> Command:
    chacha = "ssl_conf_command Ciphersuites TLS_CHACHA20_POLY1305_SHA256;" if site.mode == "chacha20" else ""
    config = site.write(
        "nginx.conf",
        f"""
        daemon off; worker_processes 1; pid {site.folder}/nginx.pid; error_log stderr info;
        {"user root;" if os.getuid() == 0 else ""}
        events {{ worker_connections 512; }}
        http {{
            access_log off;
            {
            "".join(
                f"{each}_temp_path {site.folder}/{each};"
                for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
        }
            server {{
                listen {site.address} quic reuseport;
                http3 {"off" if site.alpn == "hq-interop" else "on"};
                http3_hq {"on" if site.alpn == "hq-interop" else "off"};
                quic_active_connection_id_limit 8;  # of 2, it has none left for a second change of address
                quic_retry {"on" if site.mode == "retry" else "off"};
                ssl_protocols TLSv1.3; {chacha}
                ssl_certificate {site.certs}/cert.pem; ssl_certificate_key {site.certs}/priv.key;
                keepalive_requests 100000; http3_max_concurrent_streams 128;
                root {site.www};
            }}
        }}
        """,
    )
    return [*program, "-p", site.folder, "-e", "stderr", "-c", config]


def _haproxy(site: Site, program: list[str]) -> Command:
    family = "quic6" if ":" in site.host else "quic4"
    files = sorted(site.www.iterdir())
    pem = site.write("site.pem", (site.certs / "cert.pem").read_text() + (site.certs / "priv.key").read_text())
    extra = {"chacha20": "ciphersuites TLS_CHACHA20_POLY1305_SHA256", "retry": "quic-force-retry"}.get(site.mode, "")
    rules = "\n".join(
        f"http-request return status 200 content-type application/octet-stream file {file} if {{ path /{file.name} }}"
        for file in files
    )
    config = site.write(
        "haproxy.cfg",
        f"""
global
    log stderr local0
    limited-quic
    tune.bufsize {max(16384, max(file.stat().st_size for file in files) + 8192)}
    nbthread 1
defaults
    mode http
    timeout client 60s
    timeout server 60s
    timeout connect 5s
frontend site
    bind {family}@{site.address} ssl crt {pem} alpn {site.alpn} {extra}
    {rules}
""",
    )
    return [*program, "-db", "-f", config]


def _aioquic(site: Site, program: list[str]) -> Command:
    options: list[str | Path] = ["--host", site.host, "--port", str(site.port), "--www", site.www, "--alpn", site.alpn]
    options += ["--certificate", site.certs / "cert.pem", "--key", site.certs / "priv.key", "--qlog", site.folder]
    if site.mode == "retry":
        options.append("--retry")
    if site.mode == "chacha20":
        options += ["--cipher-suites", "1303"]
    if site.mode == "v2":
        options += ["--versions", "2", "1"]
    if site.mode == "preferred" and site.preferred is not None:
        options += ["--also-port", str(site.second_port), "--preferred", "{}:{}".format(*site.preferred)]
    return [*program, *options]


#: (HAProxy sends no PATH_CHALLENGE, and nothing to a client's new address: no "rebind".)
SERVERS = [
    Server("caddy", "h3", PLAIN | {"0rtt", "ecn", "rebind"}, lambda: _installed("caddy"), _caddy, source="make setup"),
    Server(
        "ngtcp2",
        "h3",
        PLAIN | {"retry", "0rtt", "ecn", "v2", "rebind", "preferred"},
        lambda: _peer("gtlsserver") or _installed("gtlsserver"),
        _gtlsserver,
        announces_itself=True,
        newer={"v2": "--available-versions"},  # which older ones know by the number of a draft
    ),
    Server(
        "nginx",
        "hq-interop",
        PLAIN | {"retry", "rebind"},
        lambda: _peer("nginx") or _installed("nginx", "-V", "http_v3_module"),
        _nginx,
    ),
    Server(
        "haproxy",
        "hq-interop",
        PLAIN | {"retry"},
        lambda: _peer("haproxy") or _installed("haproxy", "-vv", "+QUIC"),
        _haproxy,
    ),
    Server(
        "aioquic",
        "hq-interop",
        PLAIN | {"retry", "0rtt", "v2", "rebind", "preferred"},
        lambda: [sys.executable, str(Path(__file__).with_name("server.py"))],
        _aioquic,
    ),
]
