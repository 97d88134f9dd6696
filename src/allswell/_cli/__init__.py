"""The ``allswell`` command. It behaves like curl, and can show how its connections ended.

``arguments`` reads the command line, ``sent`` makes the request, ``transfer`` sends it and follows redirects,
``output`` writes the response, ``exits`` has the exit statuses, and ``run`` puts them together.
"""

from allswell._cli.run import main

__all__ = ["main"]
