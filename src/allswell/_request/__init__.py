"""Requests and responses as the pool, its dialers and the transport know them, and the routes that they take."""
