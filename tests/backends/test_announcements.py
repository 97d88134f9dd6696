"""ORIGIN and ALTSVC frames: what is told upwards, what is ignored, what breaks the protocol."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame
from hypothesis import given
from hypothesis import strategies as st

from allswell._backends.announcements import announcement, named_origins
from allswell._backends.interface import AlternativeOffered, ConnectionBroken, OriginsNamed
from allswell._errors import RemoteProtocolError
from tests.backends.h2_peer import OK, Link, encode_frame
from tests.support.quic_client import quic_client
from tests.support.quic_server import QuicServer, ServedConnection

ALTSVC, ORIGIN = 0xA, 0xC
FIELD = b'h3=":443"; ma=60'


def entries(*origins: bytes) -> bytes:
    """The payload of an ORIGIN frame."""
    return b"".join(len(origin).to_bytes(2, "big") + origin for origin in origins)


def altsvc(origin: bytes = b"", field: bytes = FIELD) -> bytes:
    """The payload of an ALTSVC frame."""
    return len(origin).to_bytes(2, "big") + origin + field


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        (b"https://example.org", "https://example.org"),
        (b"https://Example.ORG:443", "https://example.org"),
        (b"https://example.org:8443", "https://example.org:8443"),
        (b"http://example.org", None),  # nothing to coalesce
        (b"https://*.example.org", None),  # RFC 8336 §2.1: wildcards are no origins
        (b"https://example.org/path", None),
        (b"https://user@example.org", None),
        (b"https://[::1]", None),
        (b"https://" + b"a" * 300, None),
        (b"null", None),
        (b"", None),
        (b"https://\xff", None),
    ],
)
def test_entries(entry: bytes, origin: str | None) -> None:
    expected = [origin, "https://other.example"] if origin else ["https://other.example"]
    assert named_origins(entries(entry, b"https://other.example")) == OriginsNamed(expected)


@given(st.binary(max_size=64), st.sampled_from([ALTSVC, ORIGIN]), st.sampled_from([0, 1]))
def test_any_payload_is_read_or_refused(payload: bytes, kind: int, stream: int) -> None:
    with suppress(ValueError):
        news = announcement(kind, 0, stream, payload, open_=stream == 1)
        assert news is None or isinstance(news, (OriginsNamed, AlternativeOffered))


@pytest.mark.parametrize("step", [None, 1], ids=["at once", "byte by byte"])
class TestHttp2:
    def test_origin(self, step: int | None) -> None:
        link = Link(step=step)
        frame = encode_frame(ORIGIN, 0, 0, entries(b"https://a.example", b"https://b.example"))
        assert link.deliver(frame) == [OriginsNamed(["https://a.example", "https://b.example"])]
        assert link.deliver(encode_frame(ORIGIN, 0, 0, b"")) == [OriginsNamed([])]

    def test_alternatives(self, step: int | None) -> None:
        link = Link(step=step)
        stream = link.request()
        assert link.deliver(encode_frame(ALTSVC, 0, 0, altsvc(b"https://a.example"))) == [
            AlternativeOffered(0, "https://a.example", FIELD)
        ]
        assert link.deliver(encode_frame(ALTSVC, 0, stream, altsvc())) == [AlternativeOffered(stream, "", FIELD)]

    def test_what_is_ignored(self, step: int | None) -> None:
        link = Link(step=step)
        stream = link.request()
        ignored = [
            encode_frame(ORIGIN, 0, stream, entries(b"https://a.example")),  # RFC 8336 App. A: stream 0 only
            *(encode_frame(ORIGIN, flag, 0, entries(b"https://a.example")) for flag in (1, 2, 4, 8)),
            encode_frame(ALTSVC, 0, 0, altsvc()),  # RFC 7838 §4
            encode_frame(ALTSVC, 0, stream, altsvc(b"https://a.example")),
            encode_frame(ALTSVC, 0, 0, altsvc(b"http://a.example")),
            encode_frame(ALTSVC, 0, 99, altsvc()),
        ]
        assert link.deliver(b"".join(ignored)) == []
        assert len(link.frames(link.headers(stream, OK, "END_STREAM"))) == 2  # the response goes on

    @pytest.mark.parametrize("kind", [ORIGIN, ALTSVC])
    def test_cut_short(self, step: int | None, kind: int) -> None:
        link = Link(step=step)
        [event] = link.deliver(encode_frame(kind, 0, 0, b"\x00\x09https://"))
        assert isinstance(event, ConnectionBroken)
        assert isinstance(event.error, RemoteProtocolError)
        [goaway] = [frame for frame in link.output_frames() if isinstance(frame, GoAwayFrame)]
        assert goaway.error_code == ErrorCodes.FRAME_SIZE_ERROR

    def test_a_flood_ends(self, step: int | None) -> None:
        link = Link(step=None)
        frame = encode_frame(ORIGIN, 0, 0, b"")
        events = link.deliver(frame * 10_100)
        assert isinstance(events[-1], ConnectionBroken)
        assert len(events) <= 10_001


@pytest.mark.anyio
async def test_http3() -> None:
    """RFC 9412: on the control stream, and nothing elsewhere; one that is too long to be worth it is dropped."""

    def route(connection: ServedConnection, stream: int, fields: dict[bytes, bytes]) -> None:
        payload = entries(b"https://a.example")
        connection.raw(stream, bytes((ORIGIN, len(payload))) + payload)
        connection.raw(connection.control_stream, bytes((ORIGIN, len(payload))) + payload)
        long = entries(*[b"https://b.example"] * 1000)
        connection.raw(connection.control_stream, bytes((ORIGIN,)) + (len(long) | 1 << 31).to_bytes(4, "big") + long)
        connection.raw(connection.control_stream, bytes((ORIGIN, 0)))
        connection.respond(stream, 200, b"ok")

    with QuicServer({b"/o": route}) as server:
        async with quic_client(server.port) as client:
            assert (await client.get("/o"))[1] == b"ok"
            with anyio.fail_after(30):
                while len(client.announced) < 2:  # noqa: ASYNC110  streams are not in order
                    await anyio.sleep(0.005)
            assert client.announced == [OriginsNamed(["https://a.example"]), OriginsNamed([])]
