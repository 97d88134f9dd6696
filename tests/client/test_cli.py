"""The ``allswell`` command, run as a user runs it: in a process of its own, against a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.caddy import caddy
from tests.support.certificates import certificates
from tests.support.servers import ServerInfo, free_port


def allswell(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command, as installed, with the throw-away CA trusted."""
    command = [str(Path(sys.executable).with_name("allswell")), "--cacert", str(certificates().ca), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=55)


def test_body_goes_to_stdout_and_status_to_stderr(origin: ServerInfo) -> None:
    done = allswell(f"{origin.url}/anything")
    assert done.returncode == 0, done.stderr
    assert b'"method": "GET"' in done.stdout
    assert done.stderr.startswith(b"HTTP/2 200 ")


@pytest.mark.parametrize(("option", "version"), [("--http1", b"HTTP/1.1"), ("--http2", b"HTTP/2")])
def test_speaks_the_version_it_is_told_to(origin: ServerInfo, option: str, version: bytes) -> None:
    done = allswell(option, "-i", "-s", f"{origin.url}/anything")
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.partition(b"\n\n")
    assert head.startswith(version + b" 200")
    assert b"\ncontent-type: " in head
    assert body.startswith(b"{")
    assert not done.stderr


def test_speaks_http3_and_shows_its_end() -> None:
    with caddy() as server:
        done = allswell("--http3", "--ends", f"{server.url}/")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"hello"
    assert done.stderr.startswith(b"HTTP/3 200")
    assert "→ CONNECTION_CLOSE".encode() in done.stderr


def test_verbose_tells_both_heads(origin: ServerInfo) -> None:
    done = allswell("-v", "-H", "X-Greeting: hello", f"{origin.url}/anything")
    assert b"> GET /anything\n" in done.stderr
    assert b"> x-greeting: hello\n" in done.stderr
    assert b"\n< HTTP/2 200 " in done.stderr


def test_data_is_posted_from_argument_file_and_stdin(origin: ServerInfo, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"from a file")
    for data, stdin, arrived in [
        ("from the line", b"", b"from the line"),
        (f"@{tmp_path}/body", b"", b"from a file"),
        ("@-", b"from stdin", b"from stdin"),
    ]:
        done = allswell("-d", data, f"{origin.url}/anything", stdin=stdin)
        assert done.returncode == 0, done.stderr
        assert b'"method": "POST"' in done.stdout
        assert arrived in done.stdout


def test_method_and_output_file(origin: ServerInfo, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"what was there before is gone")
    done = allswell("-X", "DELETE", "-o", f"{tmp_path}/out", f"{origin.url}/anything", f"{origin.url}/anything")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    assert (tmp_path / "out").read_bytes().count(b'"method": "DELETE"') == 2
    assert (tmp_path / "out").read_bytes().startswith(b"{")


def test_ends_shows_the_waterfall(origin: ServerInfo) -> None:
    done = allswell("--ends", "--http1", f"{origin.url}/anything", f"{origin.url}/anything")
    assert done.returncode == 0, done.stderr
    told = done.stderr.decode()
    assert "closed 1 connection in " in told
    assert "(2 exchanges; the pool closes)" in told
    for said in ("→ close_notify", "← close_notify", "→ FIN", "← FIN"):
        assert said in told
    assert "2 s grace: clean" in told


def test_fail_turns_an_error_status_into_3(origin: ServerInfo) -> None:
    url = f"{origin.url}/there-is-no-such-page"
    assert allswell(url).returncode == 0
    done = allswell("--fail", url)
    assert done.returncode == 3
    assert b" 404 " in done.stderr


def test_a_refused_connection_is_1_and_the_next_url_is_still_fetched(origin: ServerInfo) -> None:
    closed = f"https://localhost:{free_port()}"
    done = allswell(closed, f"{origin.url}/anything")
    assert done.returncode == 1
    assert f"allswell: {closed}: ".encode() in done.stderr
    assert b'"method": "GET"' in done.stdout


@pytest.mark.parametrize("way", ["refused", "no URL", "a slash in it", "no scheme", "another scheme"])
def test_errors_tell_no_password(way: str) -> None:
    urls = {
        "refused": f"https://ada:hunter@localhost:{free_port()}/",
        "no URL": "https://ada:hunter@[::/",
        "a slash in it": "https://ada:hunter/2@localhost/",
        "no scheme": f"ada:hunter@localhost:{free_port()}",
        "another scheme": "ftp://ada:hunter@localhost/",
    }
    done = allswell(urls[way])
    assert done.returncode == 1
    assert done.stderr.startswith(b"allswell: ")
    assert b"//localhost" in done.stderr or way == "no URL"
    assert b"hunter" not in done.stderr
    assert b"ada" not in done.stderr


def test_an_untrusted_certificate_is_refused_unless_told_otherwise(origin: ServerInfo) -> None:
    command = [str(Path(sys.executable).with_name("allswell")), f"{origin.url}/anything"]
    refused = subprocess.run(command, capture_output=True, timeout=55)
    assert refused.returncode == 1
    assert b"is not trusted" in refused.stderr
    assert subprocess.run([*command, "-k"], capture_output=True, timeout=55).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], b"URL"),
        (["-H", "no colon", "localhost"], b"is not of the form"),
        (["-d", "@/there/is/no/such/file", "localhost"], b"cannot read"),
        (["--http1", "--http2", "localhost"], b"not allowed with"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], told: bytes) -> None:
    done = allswell(*arguments)
    assert done.returncode == 2
    assert told in done.stderr


def test_an_output_that_cannot_be_written_is_1() -> None:
    done = allswell("-o", "/there/is/no/such/folder/out", "localhost")
    assert done.returncode == 1
    assert b"/there/is/no/such/folder/out" in done.stderr
