"""Benchmarks: ours and other clients side by side, against Caddy, each run in a process of its own (``make bench``)."""
