"""Freed memory stays with a process that trains, instead of going back to the system after every step.

Each step allocates the same activations and gradients anew. glibc by itself may give their pages back whenever a large
block is freed, and then every step has the system clear and map them again: a fifth of the time of a small network.
Whether it does depends on what was allocated before (its thresholds adapt), so equal processes differ.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT: Final = 256 << 20  # bytes of freed memory that stay
_LARGEST: Final = 32 << 20  # of a block that comes from the heap, the most that glibc allows


def keep_freed_memory() -> bool:
    """Have this process keep up to 256 MB of freed memory; returns whether it does.

    Where the C library isn't glibc, or the environment says how it is to allocate (`MALLOC_...`, `GLIBC_TUNABLES`),
    nothing is changed.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - others have a mallopt of another meaning
        # One without the other would be worse than neither: each switches the adapting off.
        return bool(library.mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(library.mallopt(_TRIM_THRESHOLD, _KEPT))
    except (OSError, AttributeError):
        return False
