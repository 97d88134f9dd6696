#!/bin/bash
# `make interop`: the QUIC interop runner where there is a Docker engine, the local matrix where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    exec interop/docker.sh "$@"
fi
echo "no running Docker engine: the matrix with this machine's servers, through a relay"
exec .venv/bin/python -m interop.local "$@"
