"""Fewer garbage collections while code is generated."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_OBJECTS = 200_000  # allocated between collections of the youngest, some 50 MB of instructions

_lock = threading.Lock()
_inside = 0
_before = (0, 0, 0)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Within, Python's collector looks for cycles a few hundred times less often.

    A build makes hundreds of thousands of small objects that live until a kernel is written;
    looking through them every 700 allocations takes a good part of its time. Builds may overlap:
    the last to end restores what was set, unless it was changed meanwhile. A collector that is
    off or rarer stays so.
    """
    global _inside, _before
    with _lock:
        _inside += 1
        if _inside == 1:
            _before = gc.get_threshold()
            if 0 < _before[0] < _OBJECTS:
                gc.set_threshold(_OBJECTS, *_before[1:])
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0 and gc.get_threshold() == (_OBJECTS, *_before[1:]):
                gc.set_threshold(*_before)
