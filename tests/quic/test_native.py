"""The compiled loop (``native/``) and Python's make the same of the same packets, whatever a hostile peer sends.

With the sanitizers, whose library must match the compiler::

    CFLAGS="-g -fsanitize=address,undefined -fno-sanitize-recover" LD_PRELOAD=$(gcc -print-file-name=libasan.so) \\
        ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc python -X dev -m pytest -s -p no:xdist tests/quic/test_native.py
"""

from __future__ import annotations

import array
import gc
import mmap
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import hypothesis
import pytest
from aioquic._buffer import Buffer, BufferReadError
from aioquic._crypto import AEAD, HeaderProtection
from aioquic.buffer import encode_uint_var
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from allswell import __version__
from allswell._quic import native, runs
from allswell._quic.runs import NativeOpener, NativeSealer, Opened, Opener, Piece, Sealer

_MOST_FRAMES = 16
_MOST_PARTS = 256


@pytest.fixture(scope="module", autouse=True)
def loops(compiled: ModuleType) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "loops", compiled)
        yield


class Keys(NamedTuple):
    """Of one direction, and what the other side has."""

    aead: AEAD
    protection: HeaderProtection
    cid: bytes
    key_phase: int


def keys(size: int = 16, cid: bytes = b"12345678", key_phase: int = 0) -> Keys:
    name = str(size * 8).encode()
    aead = AEAD(b"aes-%b-gcm" % name, bytes(range(size)), bytes(range(12)))
    return Keys(aead, HeaderProtection(b"aes-%b-ecb" % name, bytes(size)), cid, key_phase)


_KEYS = st.builds(keys, st.sampled_from([16, 32]), st.binary(max_size=20), st.integers(0, 1))


def sealed(by: Keys, payload: bytes, number: int, length: int = 2, bits: int = 0) -> bytes:
    """A packet, as RFC 9001 §5 has it."""
    first = 0x40 | by.key_phase << 2 | length - 1 | bits
    header = bytes([first]) + by.cid + (number & (1 << 8 * length) - 1).to_bytes(length, "big")
    payload += bytes(max(0, 4 - length - len(payload)))
    return by.protection.apply(header, by.aead.encrypt(payload, header, number))


# What the compiled loop must make of packets, said another way


def frames(payload: bytes) -> list[Piece] | None:
    """The STREAM frames of a payload that has a few of them, and nothing else."""
    found: list[Piece] = []
    buffer = Buffer(data=payload)
    try:
        while not buffer.eof():
            kind = buffer.pull_uint8()
            if kind & 0xF8 != 0x08:
                return None
            stream = buffer.pull_uint_var()
            offset = buffer.pull_uint_var() if kind & 4 else 0
            size = buffer.pull_uint_var() if kind & 2 else len(payload) - buffer.tell()
            found.append((stream, offset, buffer.pull_bytes(size), kind & 1))
            if not size and not kind & 1:
                return None
    except BufferReadError:
        return None
    return found if 0 < len(found) <= _MOST_FRAMES else None


def joined(found: list[Piece], to: list[Piece]) -> list[Piece] | None:
    """The frames behind these pieces; ``None``: one does not continue its stream, or there are too many streams."""
    pieces = {stream: (offset, data, fin) for stream, offset, data, fin in to}
    for stream, offset, data, fin in found:
        start, before, ended = pieces.get(stream, (offset, b"", 0))
        if ended or offset != start + len(before):
            return None
        pieces[stream] = (start, before + data, fin)
    return None if len(pieces) > _MOST_FRAMES else [(stream, *piece) for stream, piece in pieces.items()]


def stretches(packets: list[Opened]) -> list[Opened]:
    """Packets that were opened one by one, in stretches."""
    made: list[Opened] = []
    parts = 0
    for first, number, _, payload in packets:
        assert isinstance(payload, bytes)
        found = frames(payload)
        alone = None if found is None else joined(found, [])
        if found is None or alone is None:
            made.append((first, number, 1, payload))
            continue
        _, begin, count, before = made[-1] if made else (0, -1, 0, b"")
        together = None if isinstance(before, bytes) else joined(found, before)
        if begin + count == number and together is not None and parts + len(found) <= _MOST_PARTS:
            made[-1] = (first, begin, count + 1, together)
            parts += len(found)
        else:
            made.append((first, number, 1, alone))
            parts = len(found)
    return made


def compare(by: Keys, run: bytes, ends: list[int], index: int, expected: int) -> list[Opened]:
    opened = NativeOpener(*by).open(run, ends, index, expected)
    assert opened == stretches(Opener(*by).open(run, ends, index, expected))
    return opened


# Opening

_INTEGERS = st.one_of(st.integers(0, 70), st.sampled_from([1 << 14, 1 << 30, (1 << 62) - 1]))


@st.composite
def payloads(draw: st.DrawFn) -> list[bytes]:
    """Payloads of packets that mostly continue the data of a few streams."""
    offsets: dict[int, int] = {}
    made = []
    for _ in range(draw(st.integers(0, 20))):
        payload = b""
        for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2, 3, 16, 17]))):
            stream = draw(st.sampled_from([0, 0, 0, 4, 8, 400, 1 << 20, 1 << 40]))
            size = draw(st.sampled_from([0, 1, 5, 50]))
            offset = offsets.get(stream, draw(_INTEGERS)) + draw(st.sampled_from([0] * 20 + [1, -1]))
            offset = min(max(0, offset), (1 << 62) - 1)
            kind = 0x08 | 4 * (offset > 0 or draw(st.booleans())) | 2 | (draw(st.integers(0, 9)) == 0)
            payload += bytes([kind]) + encode_uint_var(stream) + (encode_uint_var(offset) if kind & 4 else b"")
            payload += encode_uint_var(size) + bytes((offset + each) % 251 for each in range(size))
            offsets[stream] = offset + size
        if draw(st.integers(0, 9)) == 0:
            payload += draw(
                st.one_of(st.binary(max_size=8), st.sampled_from([b"\0", b"\x01", b"\x0c\0\0rest", b"\x08"]))
            )
        if payload and draw(st.integers(0, 9)) == 0:
            at = draw(st.integers(0, len(payload) - 1))
            payload = payload[:at] + draw(st.binary(max_size=2)) + payload[at + 1 :]
        made.append(payload[:1400])
    return made


@given(_KEYS, payloads(), st.data())
@hypothesis.settings(max_examples=100)
def test_both_open_the_same_packets(by: Keys, contents: list[bytes], data: st.DataObject) -> None:
    number = expected = data.draw(st.sampled_from([0, 5, 255, 65535, (1 << 31) - 3, (1 << 62) - 60]))
    packets = []
    for content in contents:
        length = data.draw(st.sampled_from([2, 2, 2, 1, 3, 4]))
        bits = data.draw(st.sampled_from([0] * 20 + [0x20, 0x08, 0x10, 0x80, 0x04]))
        packet = sealed(by, content, number, length, bits)
        if data.draw(st.integers(0, 29)) == 0:
            at = data.draw(st.integers(0, len(packet) - 1))
            packet = packet[:at] + data.draw(st.binary(max_size=2)) + packet[at + 1 :]
        packets.append(packet)
        number = max(0, number + data.draw(st.sampled_from([1] * 12 + [0, -1, 2, 70, 40_000])))
    ends = [sum(map(len, packets[: index + 1])) for index in range(len(packets))]
    for index in {0, len(packets) // 2, len(packets)}:
        compare(by, b"".join(packets), ends, index, expected)


@given(_KEYS, st.lists(st.binary(max_size=60), max_size=8), st.binary(max_size=30))
@hypothesis.settings(max_examples=100)
def test_both_take_any_bytes_for_a_payload(by: Keys, contents: list[bytes], garbage: bytes) -> None:
    """Of a peer that has the keys; and garbage behind it."""
    packets = [sealed(by, content, number) for number, content in enumerate(contents)]
    packets.append(garbage)
    ends = [sum(map(len, packets[: index + 1])) for index in range(len(packets))]
    compare(by, b"".join(packets), ends, 0, 0)


_FRAME_BYTES = st.lists(
    st.sampled_from([*range(0x08, 0x10), 0, 1, 2, 0x3F, 0x40, 0x7F, 0x80, 0xBF, 0xC0, 0xFF]), max_size=40
)


@given(st.lists(_FRAME_BYTES.map(bytes), max_size=8))
@hypothesis.settings(max_examples=200)
def test_both_read_broken_frames_alike(contents: list[bytes]) -> None:
    by = keys()
    packets = [sealed(by, content, number) for number, content in enumerate(contents)]
    ends = [sum(map(len, packets[: index + 1])) for index in range(len(packets))]
    compare(by, b"".join(packets), ends, 0, 0)


@given(st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=80), st.binary(max_size=20))
@hypothesis.settings(max_examples=100)
def test_any_bytes_are_taken_for_a_run(run: bytes, cuts: list[int], cid: bytes) -> None:
    """Of a peer that has no keys. The cuts are those of the kernel."""
    by = keys(cid=cid)
    ends = sorted(min(cut, len(run)) for cut in cuts)
    assert compare(by, run, ends, 0, 0) == []
    begun = bytearray(run)
    for end in ends:
        begun[end : end + 1 + len(cid)] = (b"\x40" + cid)[: len(run) - end]
    compare(by, bytes(begun), ends, 0, 0)


def test_a_download_is_one_stretch() -> None:
    """What comes in one batch of datagrams, as large as they may be; the rest is for another call."""
    by = keys()
    parts = [bytes([each]) * 1440 for each in range(200)]
    packets = [sealed(by, b"\x0c\0" + encode_uint_var(1440 * each) + part, each) for each, part in enumerate(parts)]
    ends = [sum(map(len, packets[: index + 1])) for index in range(len(packets))]
    run = b"".join(packets)
    [(first, number, count, content)] = compare(by, run, ends, 0, 0)
    assert (first, number, count) == (0x41, 0, 192)
    assert content == [(0, 0, b"".join(parts[:count]), 0)]
    [(first, number, count, content)] = compare(by, run, ends, count, count)
    assert (first, number, count) == (0x41, 192, 8)


def test_a_stretch_has_room_for_so_many_streams_and_frames() -> None:
    """What is too much for one begins another."""
    by = keys()

    def frame(stream: int, offset: int) -> bytes:
        return b"\x0e" + encode_uint_var(stream) + encode_uint_var(offset) + b"\x01x"

    many_streams = [frame(4 * each, 0) + frame(4 * each + 1, 0) for each in range(20)]
    many_frames = [b"".join(frame(0, 16 * each + at) for at in range(16)) for each in range(40)]
    for contents, counts in ((many_streams, [8, 8, 4]), (many_frames, [16, 16, 8])):
        packets = [sealed(by, content, number) for number, content in enumerate(contents)]
        ends = [sum(map(len, packets[: index + 1])) for index in range(len(packets))]
        assert [count for _, _, count, _ in compare(by, b"".join(packets), ends, 0, 0)] == counts


# Sealing


@given(
    _KEYS,
    st.binary(min_size=1, max_size=9),
    st.one_of(st.integers(0, (1 << 30) - 1), st.integers(0, 1 << 61)),
    st.integers(2, 64),
    st.integers(16, 1400),
    st.sampled_from([0, 255, 65530, 1 << 31, (1 << 62) - 100]),
    st.booleans(),
)
@hypothesis.settings(max_examples=200)
def test_both_make_the_same_packets(
    by: Keys, head: bytes, offset: int, count: int, chunk: int, number: int, spin_bit: bool
) -> None:
    data = memoryview(os.urandom(chunk * count))
    width = 4 if offset + len(data) < 1 << 30 else 8
    made = NativeSealer(*by).seal(head, offset, width, data, chunk, number, spin_bit)
    assert made == Sealer(*by).seal(head, offset, width, data, chunk, number, spin_bit)
    assert len(made) == count


# As a C function


def _open(compiled: ModuleType, **changed: Any) -> Any:
    by = keys()
    packet = sealed(by, b"\x0c\0\0data", 3)
    given: dict[str, Any] = {"run": packet, "ends": [len(packet)], "index": 0, "expected": 3}
    given |= {"decrypt": by.aead._aead.decrypt_into, "update": by.protection._encryptor.update}
    given |= {"iv": bytes(range(12)), "cid": by.cid, "form": 0x40, "invalid": InvalidTag} | changed
    args = [given[name] for name in ("decrypt", "update", "iv", "cid", "form", "invalid")]
    return compiled.open_run(tuple(args), given["run"], given["ends"], given["index"], given["expected"])


def _seal(compiled: ModuleType, **changed: Any) -> Any:
    by = keys()
    given: dict[str, Any] = {"first": 0x41, "number": 3, "head": b"\x0c\0", "offset": 0, "width": 4}
    given |= {"data": bytes(200), "chunk": 100, "iv": bytes(range(12)), "cid": by.cid}
    given |= {"encrypt": by.aead._aead.encrypt_into, "update": by.protection._encryptor.update} | changed
    args = [given[name] for name in ("first", "number", "head", "offset", "width", "data", "chunk")]
    return compiled.seal_run(tuple(given[name] for name in ("encrypt", "update", "iv", "cid")), *args)


def _raise(error: type[Exception]) -> Callable[..., Any]:
    def method(*_: Any) -> Any:
        raise error

    return method


_WRONG: list[tuple[Callable[..., Any], dict[str, Any], type[Exception]]] = [
    (_open, {"iv": bytes(11)}, ValueError),
    (_open, {"cid": bytes(21)}, ValueError),
    (_open, {"index": -1}, ValueError),
    (_open, {"expected": -1}, ValueError),
    (_open, {"expected": (1 << 62) + 1}, ValueError),
    (_open, {"expected": 1 << 64}, OverflowError),
    (_open, {"ends": [1 << 40]}, ValueError),
    (_open, {"ends": [-1]}, ValueError),
    (_open, {"ends": [34, 10]}, ValueError),
    (_open, {"ends": [1 << 80]}, OverflowError),
    (_open, {"ends": ["1"]}, TypeError),
    (_open, {"ends": 5}, TypeError),
    (_open, {"run": "text"}, TypeError),
    (_open, {"iv": None}, TypeError),
    (_open, {"update": lambda _: b""}, ValueError),
    (_open, {"update": lambda samples: bytearray(samples)}, ValueError),
    (_open, {"update": _raise(KeyError)}, KeyError),
    (_open, {"update": None}, TypeError),
    (_open, {"decrypt": _raise(MemoryError)}, MemoryError),
    (_seal, {"iv": bytes(13)}, ValueError),
    (_seal, {"cid": bytes(21)}, ValueError),
    (_seal, {"chunk": 0}, ValueError),
    (_seal, {"chunk": -100}, ValueError),
    (_seal, {"chunk": 10}, ValueError),
    (_seal, {"chunk": 99}, ValueError),
    (_seal, {"chunk": 1 << 40}, ValueError),
    (_seal, {"data": bytes(6500)}, ValueError),
    (_seal, {"width": 2}, ValueError),
    (_seal, {"number": -1}, ValueError),
    (_seal, {"number": (1 << 62) - 5}, ValueError),
    (_seal, {"offset": (1 << 62) - 5}, ValueError),
    (_seal, {"head": bytes(2000)}, ValueError),
    (_seal, {"head": None}, TypeError),
    (_seal, {"encrypt": _raise(KeyError)}, KeyError),
    (_seal, {"encrypt": lambda *_: 5}, ValueError),
    (_seal, {"encrypt": lambda *_: None}, TypeError),
    (_seal, {"update": lambda _: b""}, ValueError),
]


@pytest.mark.parametrize(("function", "changed", "error"), _WRONG)
def test_arguments_are_checked(
    compiled: ModuleType, function: Callable[..., Any], changed: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        function(compiled, **changed)


@pytest.mark.parametrize("result", [KeyError, 5, None, "", 1 << 90])
def test_what_decrypting_may_do(compiled: ModuleType, result: Any) -> None:
    """Only the one error means that a packet does not open."""

    def decrypt(nonce: bytearray, data: bytearray, header: bytearray, room: bytearray) -> Any:
        assert (len(nonce), len(header), len(data) - len(room)) == (12, 11, 16)
        if isinstance(result, type):
            raise result
        return result

    with pytest.raises((KeyError, ValueError, TypeError, OverflowError)):
        _open(compiled, decrypt=decrypt)
    assert _open(compiled, decrypt=_raise(InvalidTag)) == []


def test_room_that_was_resized_is_noticed(compiled: ModuleType) -> None:
    """Nobody does that. It must not be worse than an error."""

    def shrink(nonce: bytearray, data: bytearray, header: bytearray, room: bytearray) -> int:
        del room[2:]
        return 2

    with pytest.raises(ValueError, match="size"):
        _open(compiled, decrypt=shrink)
    with pytest.raises(ValueError, match="size"):
        _seal(compiled, encrypt=shrink)


@pytest.mark.parametrize(
    "kind",
    [bytes, bytearray, memoryview, lambda data: array.array("B", data), lambda data: memoryview(b"\0" + data)[1:]],
)
def test_buffers_of_every_kind(compiled: ModuleType, kind: Callable[[bytes], Any]) -> None:
    packet = sealed(keys(), b"\x0c\0\0data", 3)
    run = kind(packet)
    expected = [(0x41, 3, 1, [(0, 0, b"data", 0)])]
    assert _open(compiled, run=run) == expected
    assert _open(compiled, ends=(len(packet),)) == expected
    assert _open(compiled, ends=range(len(packet), len(packet) + 1)) == expected
    assert _seal(compiled, data=kind(bytes(200))) == _seal(compiled)
    for buffer in (run,):
        if isinstance(buffer, bytearray):
            buffer.clear()  # it would raise, were it still in use
        elif isinstance(buffer, memoryview):
            buffer.release()


def test_memory_that_is_mapped(compiled: ModuleType) -> None:
    with mmap.mmap(-1, 200) as data:
        assert _seal(compiled, data=data) == _seal(compiled)


def test_not_contiguous_is_an_error(compiled: ModuleType) -> None:
    packet = sealed(keys(), b"\x0c\0\0data", 3)
    with pytest.raises(BufferError):
        _open(compiled, run=memoryview(packet)[::2])
    with pytest.raises(BufferError):
        _seal(compiled, data=memoryview(bytes(400))[::2])


def test_nothing_is_left_behind(compiled: ModuleType) -> None:
    """No memory, no reference: neither when it goes well, nor when it does not."""
    by = keys()
    good = [sealed(by, b"\x0e" + bytes([each % 3 * 4]) + b"\x40\x00\x01x", each) for each in range(10)]
    packets = [*good, sealed(by, b"\x01", 10), sealed(by, b"\x01", 11)[:-1] + b"?", bytes(40)]
    run, ends = b"".join(packets), [sum(map(len, packets[: each + 1])) for each in range(len(packets))]
    opener, sealer = NativeOpener(*by), NativeSealer(*by)
    data = memoryview(bytes(6400))

    def everything() -> None:
        for index in range(len(packets)):
            opener.open(run, ends, index, 0)
        sealer.seal(b"\x0c\0", 0, 4, data, 100, 0, False)
        for function, changed, error in _WRONG:
            with pytest.raises(error):
                function(compiled, **changed)

    def held() -> tuple[int, list[int]]:
        gc.collect()  # errors hold frames, and these hold errors
        watched: list[Any] = [run, ends, data, InvalidTag, compiled, *opener._keys, *sealer._keys]
        return tracemalloc.get_traced_memory()[0], [sys.getrefcount(each) for each in watched]

    tracemalloc.start()
    try:
        for _ in range(20):
            everything()
        before, references = held()
        for _ in range(100):
            everything()
        after, references_after = held()
    finally:
        tracemalloc.stop()
    assert references_after == references
    assert after - before < 20_000


# How it is found

_PROGRAM = """
import logging
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
from allswell._quic import native
print(native.loops)
import allswell._filters.quic
"""


def _run(*arguments: str, there: Path, **environment: str) -> tuple[str, str]:
    paths = os.pathsep.join([str(there), str(Path(runs.__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr


def test_it_is_found_and_can_be_switched_off(built: Path) -> None:
    printed, logged = _run("-c", _PROGRAM, there=built)
    assert str(built) in printed
    assert _run("-c", _PROGRAM, there=built, ALLSWELL_NATIVE="0") == ("None\n", "")
    assert logged == ""


def test_the_command_says_whether_it_is_used(built: Path) -> None:
    version = f"allswell {__version__}"
    assert _run("-m", "allswell", "--version", there=built)[0] == f"{version} with allswell-native\n"
    assert _run("-m", "allswell", "--version", there=built, ALLSWELL_NATIVE="0")[0] == f"{version}\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("ABI = 999", "its ABI is 999, and not 1"),
        ("", "its ABI is None, and not 1"),
        ("import allswell_native._runs", "No module named 'allswell_native._runs'"),
        ("raise ImportError('undefined symbol: PyNew')", "undefined symbol: PyNew"),
    ],
)
def test_another_one_is_not_used_and_the_log_says_so(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "allswell_native").mkdir()
    (tmp_path / "allswell_native" / "__init__.py").write_text(content)
    printed, logged = _run("-c", _PROGRAM, there=tmp_path)
    assert printed == "None\n"
    assert logged == f"WARNING allswell allswell-native is installed and not used, so HTTP/3 is slower: {complaint}\n"
