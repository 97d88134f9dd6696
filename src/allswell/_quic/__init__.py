"""QUIC (RFC 9000) as a sans-IO layer: datagrams and the time in, events and datagrams out."""
