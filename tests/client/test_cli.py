"""The ``allswell`` command, run as a user runs it: in a process of its own, against a real server."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest

from allswell import __version__
from allswell.testing import Origin, Response
from tests.client.curl_origin import curl_origin
from tests.pool.test_pins import pin
from tests.servers.caddy import caddy
from tests.support.certificates import certificates
from tests.support.doh import Doh
from tests.support.har import faults
from tests.support.peer import scripted_peer
from tests.support.peer_connection import PeerConnection
from tests.support.quic_server import QuicServer
from tests.support.scripts import Ending, answers, never_ends, says
from tests.support.servers import ServerInfo


def allswell(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command, as installed, with the throw-away CA trusted."""
    command = [str(Path(sys.executable).with_name("allswell")), "--cacert", str(certificates().ca), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=100)


def test_only_the_body_is_told(origin: ServerInfo) -> None:
    done = allswell(f"{origin.url}/anything")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["headers"]["user-agent"] == f"allswell/{__version__}"
    assert done.stderr == b""


def test_the_times_of_a_request_are_told_in_their_order() -> None:
    names = ("namelookup", "connect", "appconnect", "pretransfer", "starttransfer", "total")
    with Origin(tls=True) as origin:
        done = allswell(
            "--cacert", str(origin.ca_file), "-w", " ".join(f"%{{time_{name}}}" for name in names), origin.url
        )
        assert done.returncode == 0, done.stderr
        times = [float(each) for each in done.stdout.removeprefix(b"ok").split()]
        assert times == sorted(times)
        assert times[0] > 0
        done = allswell(
            "--cacert", str(origin.ca_file), "-w", "%{time_namelookup}", origin.url.replace("localhost", "127.0.0.1")
        )
        assert done.stdout == b"ok0.000000"


@pytest.mark.parametrize(
    ("option", "version"),
    [("--http1.1", b"HTTP/1.1"), ("--http1", b"HTTP/1.1"), ("--http2", b"HTTP/2"), ("--http3", b"HTTP/2")],
)
def test_speaks_the_version_it_is_told_to_or_falls_back(origin: ServerInfo, option: str, version: bytes) -> None:
    done = allswell(option, "-i", "-s", "-w", "%{http_version}", f"{origin.url}/anything")
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert head.startswith(version + b" 200")
    assert b"\r\ncontent-type: " in head
    assert body.startswith(b"{")
    assert body.endswith(version[5:])


def test_http2_falls_back_and_prior_knowledge_does_not(origin: ServerInfo) -> None:
    done = allswell("--http2", "-i", f"{origin.http_url}/anything")
    assert done.stdout.startswith(b"HTTP/1.1 200")
    done = allswell("--http2-prior-knowledge", "-i", f"{origin.http_url}/anything")
    assert done.stdout.startswith(b"HTTP/2 200")


@pytest.mark.parametrize("option", ["--http3", "--http3-only"])
def test_speaks_http3_and_shows_its_end(option: str) -> None:
    with caddy() as server:
        done = allswell(option, "-i", "--ends", f"{server.url}/")
    assert done.returncode == 0, done.stderr
    if option == "--http3-only":  # the other races TCP
        assert done.stdout.startswith(b"HTTP/3 200")
        assert "→ CONNECTION_CLOSE".encode() in done.stderr
    assert done.stdout.endswith(b"hello")


def test_http3_only_does_not_fall_back(origin: ServerInfo) -> None:
    done = allswell("--http3-only", "--connect-timeout", "2", f"{origin.url}/anything")
    assert done.returncode in (28, 96), done.stderr


def test_verbose_tells_both_heads_of_every_hop(origin: ServerInfo) -> None:
    done = allswell("-vL", "-H", "X-Greeting: hello", f"{origin.url}/redirect/2")
    told = done.stderr.decode().splitlines()
    assert [line for line in told if line.startswith("> GET")] == [
        "> GET /redirect/2 HTTP/2",
        "> GET /redirect/1?status=302 HTTP/2",
        "> GET /anything HTTP/2",
    ]
    assert [line.split()[2] for line in told if line.startswith("< HTTP/2")] == ["302", "302", "200"]
    assert told.count("> X-Greeting: hello") == 3
    assert json.loads(done.stdout)["method"] == "GET"


def test_verbose_tells_each_request_of_a_login_before_its_response() -> None:
    with curl_origin() as origin:
        done = allswell("-v", "--digest", "-u", "ada:lovelace", f"http://127.0.0.1:{origin.port}/digest")
    told = [
        line for line in done.stderr.decode().splitlines() if line.startswith(("> GET", "> Authorization", "< HTTP"))
    ]
    assert [line.partition(" realm")[0].partition(" username")[0] for line in told] == [
        "> GET /digest HTTP/1.1",
        "< HTTP/1.1 401 Unauthorized",
        "> GET /digest HTTP/1.1",
        "> Authorization: Digest",
        "< HTTP/1.1 200 OK",
    ]


def test_an_unknown_setting_of_a_form_is_told_unless_silent() -> None:
    with curl_origin() as origin:
        url = f"http://127.0.0.1:{origin.port}/"
        assert b"'y=z' is ignored" in allswell("-F", "a=x;y=z", url).stderr
        assert allswell("-s", "-F", "a=x;y=z", url).stderr == b""


def test_data_goes_the_same_way_in_http2(origin: ServerInfo, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"from a file")
    for arguments, stdin, method, arrived in [
        (["-d", "a=1", "-d", "b=2"], b"", "POST", "a=1&b=2"),
        (["-T", f"{tmp_path}/body"], b"", "PUT", "from a file"),
        (["-T", "-"], b"from stdin", "PUT", "from stdin"),
    ]:
        done = allswell(*arguments, f"{origin.url}/anything", stdin=stdin)
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        assert (shown["method"], shown["body"]) == (method, arrived)


def test_ends_shows_the_waterfall(origin: ServerInfo) -> None:
    done = allswell("--ends", "--grace", "30", "--http1.1", f"{origin.url}/anything", f"{origin.url}/anything")
    assert done.returncode == 0, done.stderr
    told = done.stderr.decode()
    assert "closed 1 connection in " in told
    assert "(2 exchanges; the pool closes)" in told
    for said in ("→ close_notify", "← close_notify", "→ FIN", "← FIN"):
        assert said in told
    assert "30 s grace: clean" in told


@pytest.mark.parametrize("elsewhere", [[], ["--connect-to", "::127.0.0.1:"]])
def test_the_grace_that_it_is_told(elsewhere: list[str]) -> None:
    """The server never answers the goodbye."""
    with scripted_peer(never_ends()) as peer:
        done = allswell("--ends", "--grace", "0.4", *elsewhere, f"{peer.url}/")
    assert done.returncode == 0, done.stderr
    assert b"0.4 s grace: not clean" in done.stderr


def test_the_next_url_is_fetched_after_a_failure(origin: ServerInfo, closed_port: int) -> None:
    closed = f"https://localhost:{closed_port}"
    done = allswell(closed, f"{origin.url}/anything")
    assert done.returncode == 7
    assert f"allswell: (7) {closed}: ".encode() in done.stderr or b"allswell: (7) cannot connect" in done.stderr
    assert b'"method": "GET"' in done.stdout


@pytest.mark.parametrize("way", ["refused", "no URL", "a slash in it", "no scheme", "another scheme"])
def test_errors_tell_no_password(way: str, closed_port: int) -> None:
    urls = {
        "refused": (7, f"https://ada:hunter@localhost:{closed_port}/"),
        "no URL": (3, "https://ada:hunter@[::/"),
        "a slash in it": (3, "https://ada:hunter/2@localhost/"),
        "no scheme": (7, f"ada:hunter@localhost:{closed_port}"),
        "another scheme": (1, "ftp://ada:hunter@localhost/"),
    }
    code, url = urls[way]
    done = allswell(url)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(b"allswell: (")
    assert b"localhost" in done.stderr or way == "no URL"
    assert b"hunter" not in done.stderr
    assert b"ada" not in done.stderr


@pytest.mark.parametrize("proxy", ["http://ada:hunter/2@localhost", "ada:hunter/2@localhost", "http://ada:hunter@[::"])
def test_what_is_no_proxy_tells_no_password(proxy: str) -> None:
    done = allswell("-x", proxy, "http://localhost/")
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith(b"allswell: cannot use the proxy's URL: ")
    assert b"hunter" not in done.stderr
    assert b"ada" not in done.stderr


def test_an_untrusted_certificate_is_60_unless_told_otherwise(origin: ServerInfo) -> None:
    command = [str(Path(sys.executable).with_name("allswell")), f"{origin.url}/anything"]
    refused = subprocess.run(command, capture_output=True, timeout=100)
    assert refused.returncode == 60
    assert b"is not trusted" in refused.stderr
    assert subprocess.run([*command, "-k"], capture_output=True, timeout=100).returncode == 0


@pytest.mark.parametrize(
    ("version", "option", "code", "told"),
    [("h2", "--http2", 92, b"REFUSED_STREAM"), ("h3", "--http3-only", 95, b"H3_REQUEST_REJECTED")],
)
def test_a_stream_that_the_server_resets(version: Literal["h2", "h3"], option: str, code: int, told: bytes) -> None:
    """The exit status says in which version, and the error names the code."""
    with Origin(versions=[version]) as origin:
        origin.refuse()
        done = allswell(option, "--cacert", str(origin.ca_file), origin.url)
    assert done.returncode == code, done.stderr
    assert told in done.stderr


def test_an_untrusted_certificate_is_60_over_quic() -> None:
    with caddy() as server:
        command = [str(Path(sys.executable).with_name("allswell")), "--http3-only", f"{server.url}/"]
        refused = subprocess.run(command, capture_output=True, timeout=100)
    assert refused.returncode == 60, refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, b"URL"),
        (["-H", "no colon", "localhost"], 2, b"must be of the form"),
        (["-d", "@/there/is/no/such/file", "localhost"], 26, b"cannot read"),
        (["-m", "soon", "localhost"], 2, b"is not a number"),
        (["-m", "nan", "localhost"], 2, b"out of range"),
        (["--connect-to", "a:b:c", "localhost"], 2, b"HOST1:PORT1:HOST2:PORT2"),
        (["--connect-to", "a:b:c:d", "localhost"], 2, b"HOST1:PORT1:HOST2:PORT2"),
        (["--http2=yes", "localhost"], 2, b"takes no value"),
        (["-L", "-C", "x", "localhost"], 2, b"-C"),
        (["--retry", "1.5", "localhost"], 2, b"is not a whole number"),
        (["-F", "a=b;encoder=base64", "localhost"], 2, b"has no setting 'encoder'"),
        (["file:///etc/hosts"], 1, b"cannot request 'file:///etc/hosts': its scheme is 'file'"),
        (["http://"], 3, b"cannot request 'http://': it has no host"),
        (["--http3", "https://"], 3, b"cannot request 'https://': it has no host"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, told: bytes) -> None:
    done = allswell(*arguments)
    assert done.returncode == code
    assert told in done.stderr


def test_help_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    done = allswell("--help")
    assert done.returncode == 0
    assert b"--data-urlencode" in done.stdout
    assert max(map(len, done.stdout.decode().splitlines())) <= 120
    monkeypatch.setenv("ALLSWELL_NATIVE", "0")  # with it: see tests/quic/test_native.py
    told = f"allswell {__version__}\n"
    assert allswell("-V").stdout.decode() == told
    assert subprocess.check_output([sys.executable, "-m", "allswell", "-V"], text=True) == told


def test_a_reader_that_leaves_is_23(origin: ServerInfo) -> None:
    command = f"exec {Path(sys.executable).with_name('allswell')} -ksS {origin.url}/anything"
    run = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    assert run.wait(55) == 23
    assert run.stderr.read().splitlines() == [
        f"allswell: (23) {origin.url}/anything: cannot write the body: the reader of the pipe has closed it".encode()
    ]
    run.stderr.close()


def test_a_client_certificate(tmp_path: Path) -> None:
    files = certificates()
    pem = files.client.read_text()
    end = pem.index("-----END", pem.index("PRIVATE KEY"))
    end = pem.index("\n", end) + 1
    (tmp_path / "key").write_text(pem[:end])
    (tmp_path / "certificate").write_text(pem[end:])
    context = files.server_context(ask_client=True)
    for arguments in (
        ["--cert", str(files.client)],
        ["-E", f"{tmp_path}/certificate", "--key", f"{tmp_path}/key"],
    ):
        with scripted_peer(answers(), tls=context) as peer:
            done = allswell(*arguments, f"{peer.url}/asked")
            assert (done.returncode, done.stdout) == (0, b"/asked"), done.stderr
    with scripted_peer(answers(), tls=context) as peer:
        assert allswell(f"{peer.url}/asked").returncode in (35, 55, 56)


def test_a_client_certificate_of_pkcs12(tmp_path: Path) -> None:
    files = certificates()
    packed = tmp_path / "client.p12"
    packing = ["openssl", "pkcs12", "-export", "-in", str(files.client), "-out", str(packed), "-passout", "pass:sesame"]
    subprocess.run(packing, check=True)
    arguments = ["--cacert", str(files.ca), "--cert-type", "P12"]
    for speak in ([], ["--http3-only"]):
        with scripted_peer(answers(), tls=files.server_context(ask_client=True)) as tcp, QuicServer() as quic:
            url = f"https://localhost:{quic.port}/hello" if speak else tcp.url
            done = allswell(*arguments, *speak, "-E", f"{packed}:sesame", url)
            assert done.returncode == 0, done.stderr
    for wrong, told in ((f"{packed}:shut", b"PKCS #12 data: "), ("nowhere.p12:sesame", b"No such file")):
        done = allswell(*arguments, "-E", wrong, "https://localhost:1")
        assert done.returncode == 58
        assert told in done.stderr
        assert b"sesame" not in done.stderr
    assert allswell("--cert-type", "DER", "localhost").returncode == 2


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", 52),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", 18),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", 18),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nab\r\n5 \r\nab", 18),
        (b"HTTP/1.1 200 OK\r\ntruncated : a server's words are not ours\r\n\r\n", 56),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5, too early\r\n\r\n", 56),
    ],
    ids=["nothing", "content-length", "chunks", "unusual chunks", "a line", "a length"],
)
def test_an_end_that_came_too_early_is_told_from_other_faults(said: bytes, code: int) -> None:
    def script(connection: PeerConnection) -> None:
        if connection.read_request():
            connection.send(said)
            connection.fin()

    with scripted_peer(script) as peer:
        done = allswell(peer.url)
    assert done.returncode == code, done.stderr


def test_pins_as_curl_has_them(closed_port: int) -> None:
    files = certificates()
    other = "sha256//" + "A" * 43 + "="

    def to(connection: PeerConnection) -> None:
        if connection.read_request():
            lead = f"Location: https://127.0.0.1:{peer.port}/"
            connection.send(f"HTTP/1.1 302 There\r\nContent-Length: 0\r\n{lead}\r\n\r\n".encode())

    for pins, status in ((pin(files), 0), (f"{other};{pin(files)}", 0), (other, 90)):
        with scripted_peer(answers(), tls=files.server_context()) as peer:
            arguments = ["--cacert", str(files.ca), "--pinnedpubkey", pins, f"https://localhost:{peer.port}/a"]
            done = allswell(*arguments)
            assert done.returncode == status, done.stderr
            if curl := shutil.which("curl"):
                assert subprocess.run([curl, "-qsS", *arguments], capture_output=True).returncode == status
    assert b"none of its pins" in done.stderr
    assert allswell("--pinnedpubkey", "sha256//x", "https://localhost:1/").returncode == 2
    two_spellings = [f"https://{host}:{closed_port}/" for host in ("[::1]", "[0::1]")]
    assert allswell("--pinnedpubkey", pin(files), *two_spellings).returncode == 7  # nobody is there
    with scripted_peer(to, tls=files.server_context()) as peer:  # where nobody has pinned a key
        arguments = ["-L", "--cacert", str(files.ca), "--pinnedpubkey", pin(files), f"https://localhost:{peer.port}/a"]
        done = allswell(*arguments)
        assert (done.returncode, len(peer.connections)) == (90, 1), done.stderr
        assert allswell(*arguments[1:]).returncode == 0  # it is not followed


def test_names_by_dns_over_https() -> None:
    server = Doh()
    server.zone = "name.example. 60 A 127.0.0.1"
    arguments = ["--cacert", str(certificates().ca)]
    with server.serve("h2") as port, Origin({"/a": Response(body=b"a")}, tls=False) as origin:
        url = f"http://name.example:{origin.port}/a"
        done = allswell(*arguments, "--doh-url", f"https://localhost:{port}/dns", url)
        assert (done.returncode, done.stdout) == (0, b"a"), done.stderr
        done = allswell(*arguments, "--doh-url", f"https://localhost:{port}/dns", "http://no.example/")
        assert done.returncode == 6, done.stderr
    assert "no.example A" in server.queries
    for url, status in (("https://no.such.host.invalid/", 6), ("http://localhost/", 2), ("https://a:b/", 2)):
        done = allswell("--doh-url", url, "http://name.example/")
        assert done.returncode == status, done.stderr


def test_informational_responses_are_heads_too() -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    with scripted_peer(says(hint + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Ending.FIN)) as peer:
        done = allswell("-iv", f"{peer.url}/")
    assert done.stdout == hint + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    assert b"< HTTP/1.1 103 Early Hints\n< Link: </a>\n<\n< HTTP/1.1 200 OK\n" in done.stderr


def test_what_came_from_standard_input_is_sent_once() -> None:
    count: list[bytes] = []

    def later(connection: PeerConnection) -> None:
        count.append(connection.read_request())
        connection.send(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\nRetry-After: 0\r\n\r\n")
        connection.read_until_end()

    with scripted_peer(later) as peer:
        done = allswell("-T", "-", "--retry", "3", "-f", f"{peer.url}/", stdin=b"once")
    assert done.returncode == 22
    assert len(count) == 1

    def elsewhere(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 307 There\r\nContent-Length: 0\r\nLocation: /there\r\n\r\n")
        connection.read_until_end()

    with scripted_peer(elsewhere) as peer:
        done = allswell("-L", "-T", "-", f"{peer.url}/", stdin=b"once")
    assert done.returncode == 65, done.stderr


def test_nobody_reads_what_is_written_out(origin: ServerInfo) -> None:
    command = f"exec {Path(sys.executable).with_name('allswell')} -ksS -o /dev/null -w done {origin.url}/anything"
    run = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.close()
    assert run.wait(55) == 23
    assert run.stderr.read() == b""
    run.stderr.close()


# --- while it goes on


def test_events_are_shown_as_they_come() -> None:
    told = threading.Event()

    def tells(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in b"12":
            connection.send(b"9\r\ndata: %c\n\n\r\n" % number)
            told.wait(30)
            told.clear()
        connection.send(b"0\r\n\r\n")
        connection.read_until_end()

    with scripted_peer(tells) as peer:
        command = [str(Path(sys.executable).with_name("allswell")), peer.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            for number in b"12":
                assert run.stdout.readline() == b"data: %c\n" % number
                assert run.stdout.readline() == b"\n"
                told.set()
            assert run.wait(30) == 0


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_har_tells_of_all_requests_and_of_the_ends(option: str, origin: ServerInfo, tmp_path: Path) -> None:
    path = tmp_path / "file.har"
    told = [option, "--grace", "30", "-L", "-u", "user:secret", "--har", str(path)]
    done = allswell(*told, f"{origin.url}/redirect/1", f"{origin.url}/status/404")
    assert done.returncode == 0, done.stderr
    har = json.loads(path.read_text())
    assert list(faults(har)) == []
    assert [each["response"]["status"] for each in har["log"]["entries"]] == [302, 200, 404]
    [connection] = har["log"]["_connections"]
    assert connection["end"]["clean"] is True
    sent = [each for entry in har["log"]["entries"] for each in entry["request"]["headers"]]
    assert [each["value"] for each in sent if each["name"].lower() == "authorization"] == ["[redacted]"] * 3


def test_har_that_cannot_be_written_is_an_error_at_once(origin: ServerInfo, tmp_path: Path) -> None:
    done = allswell("--har", str(tmp_path / "none" / "file.har"), f"{origin.url}/anything")
    assert done.returncode == 23
    assert done.stdout == b""
    assert b"file.har: No such file or directory" in done.stderr
    done = allswell("-s", "-o", "/dev/null", "--har", "/dev/stdout", f"{origin.url}/anything")
    assert done.returncode == 0, done.stderr
    assert list(faults(json.loads(done.stdout))) == []


@pytest.mark.parametrize("caught", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_gracefully_and_ends_are_told(caught: signal.Signals, origin: ServerInfo) -> None:
    def stuck(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
        connection.read_until_end()

    with scripted_peer(stuck) as busy:
        command = [
            str(Path(sys.executable).with_name("allswell")),
            "-k",
            "--ends",
            f"{origin.url}/status/204",
            busy.url,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_hear_signals) as run:
            assert run.stdout is not None
            assert run.stdout.read(4) == b"some"
            run.send_signal(caught)
            out, err = run.communicate(timeout=100)
        busy.wait_ended()
    assert run.returncode == 128 + caught, err
    assert out == b""
    told = err.decode()
    assert "closed 2 connections in " in told
    assert "→ GOAWAY" in told  # to the one that was idle
    assert "→ RST" in told  # to the other


def test_a_signal_ends_it_while_nobody_reads_its_output() -> None:
    def endless(connection: PeerConnection) -> None:
        connection.read_request()
        connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.send(bytes(65536))  # until the client is gone, or takes no more

    with scripted_peer(endless, send_buffer=65536) as peer:
        command = [str(Path(sys.executable).with_name("allswell")), peer.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=_hear_signals) as run:
            assert run.stdout is not None
            waiting = fcntl.ioctl(run.stdout, termios.FIONREAD, b"0000")
            while int.from_bytes(waiting, sys.byteorder) < 60_000:  # the pipe is as good as full
                threading.Event().wait(0.005)
                waiting = fcntl.ioctl(run.stdout, termios.FIONREAD, b"0000")
            run.send_signal(signal.SIGTERM)
            try:
                assert run.wait(30) == 143
            finally:
                run.kill()
                run.stdout.close()


def _hear_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # where tests run in the background it is ignored


# --- on a terminal


def on_terminal(arguments: list[str], *, out: int | None = None) -> str:
    """What the command prints on a terminal; without its standard output, if that goes elsewhere."""
    command = [str(Path(sys.executable).with_name("allswell")), *arguments]
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "300", "TERM": "xterm"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs if out is None else out, stderr=theirs, env=env
    ):
        os.close(theirs)
        told = b""
        with suppress(OSError):  # EIO: it has ended
            while piece := os.read(ours, 65536):
                told += piece
    os.close(ours)
    return told.decode()


@pytest.mark.parametrize("option", [[], ["-#"], ["-s"], ["--no-progress-meter"]], ids=str)
def test_progress_is_shown_on_a_terminal(option: list[str], tmp_path: Path) -> None:
    body = b"x" * 1_000_000
    with scripted_peer(says(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + body)) as peer:
        told = on_terminal([*option, "-o", str(tmp_path / "out"), f"{peer.url}/"])
    assert (tmp_path / "out").read_bytes() == body
    if not option:
        assert "1.0/1.0 MB" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told)
    elif option == ["-#"]:
        assert "#### 100.0%\r\n" in told
    else:
        assert told == ""


def test_a_body_on_a_terminal_has_no_progress_in_it() -> None:
    with scripted_peer(says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")) as peer:
        assert on_terminal([f"{peer.url}/"]) == "ok"


def test_a_binary_body_is_for_a_terminal_only_when_asked_for() -> None:
    with scripted_peer(says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\0bc")) as peer:
        assert "(23)" in on_terminal([f"{peer.url}/"])
    with scripted_peer(says(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\na\0bc")) as peer:
        assert on_terminal(["-o", "-", f"{peer.url}/"]) == "a\0bc"
