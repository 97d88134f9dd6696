"""Recordings of requests as HAR 1.2, the format of browsers' developer tools."""
