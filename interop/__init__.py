"""allswell as an endpoint of the QUIC interop runner, and the same matrix on one machine without Docker."""
