"""Requests and responses of the pool, and the routes that requests take."""
