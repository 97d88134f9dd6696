"""The ``allswell`` command: curl's habits, and how the connections ended.

``arguments`` reads the command line, ``sent`` says what is sent, ``transfer`` sends it and follows where it leads,
``output`` says where it goes, ``exits`` how the command ends; ``run`` puts them together.
"""

from allswell._cli.run import main

__all__ = ["main"]
