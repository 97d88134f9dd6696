"""``make demo``: real HTTPS requests to a local origin, over each version of HTTP, and how each connection ended."""
