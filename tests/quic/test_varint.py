"""Variable-length integers, as RFC 9000 §16 and its appendix A.1 have them."""

from __future__ import annotations

import pytest

from allswell._quic import varint


@pytest.mark.parametrize(
    ("octets", "value"),
    [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
        ("4025", 37),
    ],
)
def test_examples(octets: str, value: int) -> None:
    data = b"before" + bytes.fromhex(octets)
    assert varint.decode(data + b"behind", 6) == (value, len(data))
    for cut in range(6, len(data)):
        with pytest.raises(IndexError):
            varint.decode(data[:cut], 6)


@pytest.mark.parametrize("value", [0, 63, 64, 16383, 16384, (1 << 30) - 1, 1 << 30, (1 << 62) - 1])
def test_encoded_in_as_few_bytes_as_it_takes(value: int) -> None:
    encoded = varint.encode(value)
    assert varint.decode(encoded, 0) == (value, len(encoded))
    assert len(encoded) == next(size for size in (1, 2, 4, 8) if value < 1 << (8 * size - 2))
