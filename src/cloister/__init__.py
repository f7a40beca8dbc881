"""Cloister: train one model on joined data that nobody may see, and serve it, and prove it.

The map is in ``docs/``; each room (sub-package) opens with an essay that states its rules. The names that
most users need are re-exported here lazily, so that ``import cloister`` costs nothing.
"""

from cloister._version import __version__

__all__ = ["__version__"]
