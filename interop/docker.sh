#!/bin/bash
# The matrix in the QUIC interop runner itself: builds the endpoint's image, fetches the runner at a pinned revision,
# registers the client beside the published implementations, and runs it as every server's client.
# Needs docker (with compose), git, python3 and tshark. It takes what the local matrix takes (interop/options.py); what
# stands behind -- goes to the runner as it is: interop/docker.sh --cases retry -- --debug
set -euo pipefail
cd "$(dirname "$0")/.."

revision=de3043ca8c31358ddb87788abb7992897659fbaa
runner=interop/runner
image=allswell-interop:latest

for program in git tshark editcap; do
    command -v "$program" >/dev/null || { echo "the interop runner needs $program" >&2; exit 1; }
done

words=$("${VENV:-.venv}/bin/python" -m interop.options "$@")
mapfile -t words <<<"$words"

docker build --file interop/Dockerfile --tag "$image" .

if [[ ! -d $runner/.git ]]; then
    git init --quiet "$runner"
    git -C "$runner" remote add origin https://github.com/quic-interop/quic-interop-runner.git
fi
if [[ $(git -C "$runner" rev-parse --quiet --verify HEAD || true) != "$revision" ]]; then
    git -C "$runner" fetch --quiet --depth 1 origin "$revision"
    git -C "$runner" checkout --quiet --force "$revision"
fi
if [[ ! -x $runner/.venv/bin/python ]]; then
    python3 -m venv "$runner/.venv"
fi
"$runner/.venv/bin/pip" install --quiet --requirement "$runner/requirements.txt"

cd "$runner"
.venv/bin/python - "$image" <<'PYTHON'
import json, pathlib, sys

path = pathlib.Path("implementations_quic.json")
known = json.loads(path.read_text())
known["allswell"] = {"image": sys.argv[1], "url": "https://pypi.org/project/allswell/", "role": "client"}
path.write_text(json.dumps(known, indent=2) + "\n")
PYTHON
exec .venv/bin/python run.py --protocol quic --client allswell --json ../runner-result.json "${words[@]}"
