"""What is sent in QPACK: ls-qpack's decoder is the judge."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pylsqpack import Decoder

from allswell._backends.http3_qpack import SectionEncoder
from allswell._messages import Headers

PSEUDO = st.fixed_dictionaries(
    {
        b":method": st.sampled_from([b"GET", b"PATCH"]),
        b":scheme": st.just(b"https"),
        b":authority": st.sampled_from([b"example.org", b"h" * 300]),
        b":path": st.sampled_from([b"/", b"/?", b"*", b"/" + b"p" * 126, b"/" + b"p" * 127, b"/" + b"q" * 20_000]),
    }
)
FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b"accept", b"cookie", b"authorization", b"x-api-key", b"x", b"n" * 40]),
        st.one_of(st.binary(max_size=12), st.sampled_from([b"*/*", b"v" * 126, b"v" * 127, b"v" * 500])),
    ),
    max_size=6,
)


def by_name(fields: Headers) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("table", [0, 4096])
@settings(max_examples=100, deadline=None)
@given(sections=st.lists(st.tuples(PSEUDO, FIELDS), min_size=1, max_size=6))
def test_a_section_is_decoded_as_it_was_given(table: int, sections: list[tuple[dict[bytes, bytes], Headers]]) -> None:
    """All but the order of fields with different names. Pseudo-header fields come first (RFC 9114 §4.3)."""
    encoder, decoder = SectionEncoder(), Decoder(4096, 16)
    decoder.feed_encoder(encoder.apply_settings(table, 16))
    for number, (pseudo, others) in enumerate(sections * 2):
        fields = [*pseudo.items(), *others]
        instructions, section = encoder.encode(4 * number, fields)
        decoder.feed_encoder(instructions)
        acknowledgement, decoded = decoder.feed_header(4 * number, section)
        if acknowledgement:
            encoder.feed_decoder(acknowledgement)
        assert {name for name, _ in decoded[: len(pseudo)]} == set(pseudo)
        assert by_name(decoded) == by_name(fields)


def test_a_root_is_the_static_tables_line_and_any_other_path_is_never_indexed() -> None:
    for path, line in ((b"/", b"\xc1"), (b"/x", b"\x71\x02/x")):  # RFC 9204 §4.5.2, §4.5.4, Appendix A
        encoder = SectionEncoder()
        encoder.apply_settings(4096, 16)
        for number in range(5):
            instructions, section = encoder.encode(4 * number, [(b":path", path)])
            assert (instructions, section) == (b"", b"\0\0" + line)
