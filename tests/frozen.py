"""What tests imported, out of the garbage collector's sight.

pytest ends each of its runs with five full collections, those inside a test too. Each walks all
objects there are, half a million after PyTorch and diffusers: a third of such a test's time.
"""

from __future__ import annotations

import gc
import sys

WORTH_IT = 50
"""So many new modules are worth the collection that freezing takes."""
_modules = 0


def freeze_imported() -> None:
    """Freeze what is alive if much was imported; garbage is collected first, so none is kept.

    What is made later is collected as ever.
    """
    global _modules
    if len(sys.modules) < _modules + WORTH_IT:
        return
    gc.collect()
    gc.freeze()
    _modules = len(sys.modules)
