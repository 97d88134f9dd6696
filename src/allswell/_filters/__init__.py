"""Layers of bytes below HTTP: TCP, TLS, and what comes between."""
