#!/bin/bash
# The endpoint's entry point, as the QUIC interop runner calls it. In the simulator's container /setup.sh lays the
# routes and /wait-for-it.sh waits for the simulator; without Docker (interop/local.py) there is neither.
set -uo pipefail

if [[ -x /setup.sh ]]; then
    /setup.sh
fi
if [[ ${ROLE:-client} != client ]]; then
    echo "allswell is a client"
    exit 127
fi
if [[ -x /wait-for-it.sh ]]; then
    /wait-for-it.sh sim:57832 -s -t 30
fi
exec "${PYTHON:-python3}" -m interop.client
