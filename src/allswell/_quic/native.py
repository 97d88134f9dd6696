"""The optional compiled loop over the packets of a run: the distribution ``allswell-native``, if it is installed.

It does what ``runs.py`` does in Python, and nothing else. ``ALLSWELL_NATIVE=0`` in the environment switches it off.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType

logger = logging.getLogger("allswell")

#: What ``allswell_native.ABI`` must be: it is raised when the meaning of an argument or a result changes.
ABI = 1


def _find() -> ModuleType | None:
    if os.environ.get("ALLSWELL_NATIVE") == "0":
        return None
    try:
        import allswell_native
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "allswell_native":
            return None
        unfit = str(error)  # for example, it was built for another Python
    else:
        found = getattr(allswell_native, "ABI", None)
        if found == ABI:
            return allswell_native
        unfit = f"its ABI is {found}, and not {ABI}"
    logger.warning("allswell-native is installed and not used, so HTTP/3 is slower: %s", unfit)
    return None


#: The module ``allswell_native``; ``None`` if Python does everything.
loops = _find()
