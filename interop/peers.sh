#!/bin/bash
# Unpacks servers that speak QUIC from a newer Debian (nginx >= 1.26, HAProxy >= 3.0, ngtcp2) into .peers/, which git
# ignores. Nothing is installed: interop/servers.py runs them from there. Needs root and debootstrap.
# The mirror is the one that apt uses here; elsewhere than on Debian say MIRROR=URL.
set -euo pipefail
cd "$(dirname "$0")/.."

suite=trixie
if [[ -e .peers/$suite/.complete ]]; then
    echo "the peers are here: .peers/$suite"
    exit 0
fi
if [[ $(id -u) != 0 ]]; then
    echo "debootstrap needs root: sudo make peers" >&2
    exit 1
fi
if ! command -v debootstrap >/dev/null; then
    command -v apt-get >/dev/null || { echo "debootstrap is not installed" >&2; exit 1; }
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
fi
echo "nginx, HAProxy and ngtcp2 of Debian $suite for .peers/: 250 MB, a few minutes"
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Origin: Debian' | head -n 1)}
rm -rf ".peers/$suite"
mkdir -p .peers
debootstrap --variant=minbase --include=nginx,haproxy,ngtcp2-server "$suite" ".peers/$suite" ${mirror:+"$mirror"}
touch ".peers/$suite/.complete"
