#!/bin/bash
# `make interop`: the QUIC interop runner where there is a Docker engine, the local matrix where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

for word; do
    if [[ $word == -h || $word == --help ]]; then exec "${VENV:-.venv}/bin/python" -m interop.local --help; fi
done

if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
    exec interop/docker.sh "$@"
fi
echo "no running Docker engine: this machine's servers, through a relay"
exec "${VENV:-.venv}/bin/python" -m interop.local "$@"
