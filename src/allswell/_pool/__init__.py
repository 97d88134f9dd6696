"""Which connection serves a request, and when to make another: the pool."""
