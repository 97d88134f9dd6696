"""pytest on a machine that has other things to do: `python -m tests.under_load [arguments of pytest]`.

Busy loops run beside it, `BUSY` of them (6 unless told), so each test gets a fraction of a core and waits for it.
The status is pytest's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack


def main(arguments: list[str]) -> int:
    with ExitStack() as loops:
        for _ in range(int(os.environ.get("BUSY", "6"))):
            loop = loops.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            loops.callback(loop.kill)  # before the waiting of Popen.__exit__
        return subprocess.call([sys.executable, "-m", "pytest", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
