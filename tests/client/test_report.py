"""The report, printed."""

from __future__ import annotations

from allswell import CloseReport, ConnectionEnd, LayerEnd, Outcome

_H2 = ConnectionEnd(
    "https://example.org",
    "HTTP/2",
    "the pool closes",
    (
        LayerEnd("h2", "GOAWAY", "", Outcome.CLEAN, 0.0),
        LayerEnd("tls", "close_notify", "close_notify", Outcome.CLEAN, 0.05),
        LayerEnd("tcp", "FIN", "FIN", Outcome.CLEAN, 0.05),
    ),
    exchanges=3,
    seconds=0.1,
)
_H3 = ConnectionEnd(
    "https://example.net:8443",
    "HTTP/3",
    "the pool closes",
    (LayerEnd("quic", "CONNECTION_CLOSE(0x100)", "", Outcome.TIMED_OUT, 0.1), LayerEnd("udp", "", "", Outcome.SKIPPED)),
    exchanges=1,
    cut=1,
    began=0.1,
    seconds=0.1,
)


def test_waterfall() -> None:
    lines = str(CloseReport((_H2, _H3), 2.0, 0.2)).splitlines()
    assert lines[0] == "closed 2 connections in 200.0 ms of 2 s grace: not clean"
    assert lines[2] == "HTTP/2  https://example.org  (3 exchanges; the pool closes)"
    assert lines[7] == "HTTP/3  https://example.net:8443  (1 exchange, 1 cut; the pool closes)"
    layers = [line for line in lines if line.startswith("  ")]
    assert [line.split()[0] for line in layers] == ["h2", "tls", "tcp", "quic", "udp"]
    # However long the words, the columns stand one below the other; and time runs from left to right.
    assert len({(line.index("│"), len(line)) for line in layers}) == 1
    bars = [line.split("│")[1] for line in layers]
    assert bars[1].strip() == "█" * 8
    assert [bar.index("█") for bar in bars[1:4]] == [0, 7, 15]


def test_waterfall_of_nothing() -> None:
    report = CloseReport()
    assert report.clean
    assert str(report) == "closed 0 connections in 0.0 ms of 0 s grace: clean"
