"""Freed memory, given back to the system."""

from __future__ import annotations

import ctypes
import functools
import math
import time
from collections.abc import Callable


def return_memory() -> None:
    """Give memory that was freed back to the system, where the C library is glibc.

    It keeps what small pieces in use fragment, which grows with every block of large images. As the
    system must clear what it gives again, this happens once a second at most.
    """
    global _returned
    if time.monotonic() - _returned >= 1:
        _malloc_trim()(0)
        _returned = time.monotonic()


_returned = -math.inf


@functools.cache
def _malloc_trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: 0
