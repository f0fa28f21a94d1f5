"""How this process takes memory from the system."""

from __future__ import annotations

import ctypes

# mallopt(3), /usr/include/malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST = 2**31 - 1
TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Makes glibc keep what a step frees for the next step, instead of giving it back and zeroing
    new pages every time.

    On two cores a step of ResNet-50 at 128 px took a tenth of its time for that (docs/speed.md).
    The process stays as large as its largest step. Without glibc, as on a Mac, nothing changes.

    Returns:
        Whether the allocator took the settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, TOP_PAD))
    return all(mallopt(name, value) == 1 for name, value in settings)
