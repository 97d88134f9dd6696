"""Connections (each is one backend on one stack) and their exchanges."""
