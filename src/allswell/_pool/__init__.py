"""Which connection serves a request, when to make another, and what may be sent again: the pool."""
