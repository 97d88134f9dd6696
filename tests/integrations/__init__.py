"""Mocks, recorders and tracers for httpx2 and httpx, the real packages: `make integrations` installs them."""
