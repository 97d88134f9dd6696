"""A compiled loop for allswell's QUIC packets. See ``_quic/native.py`` of allswell, which uses it."""

from allswell_native._runs import ABI, open_run, seal_run

__all__ = ["ABI", "open_run", "seal_run"]
