"""``python -m allswell``: the command."""

import sys

from allswell._cli import main

if __name__ == "__main__":
    sys.exit(main())
