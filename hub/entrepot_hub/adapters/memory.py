"""How the C library keeps memory, where that costs half of a transfer's speed."""

from __future__ import annotations

import ctypes
from typing import Final

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory(*, mmap_threshold: int = 32 << 20, trim_threshold: int = 256 << 20) -> bool:
    """Let glibc serve blocks up to ``mmap_threshold`` bytes from its heap and keep ``trim_threshold`` bytes
    of it.

    asyncio's receive buffers are larger than glibc's default threshold of 128 KiB, so that each is mapped and
    unmapped, page faults and all: 0.7 GiB/s where 2.3 are possible. For entry points to call once at the
    start. ``False``, and nothing changed, where the C library has no ``mallopt`` (macOS, musl).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    mallopt.restype = ctypes.c_int
    done = mallopt(_M_MMAP_THRESHOLD, mmap_threshold) == 1 and mallopt(_M_TRIM_THRESHOLD, trim_threshold) == 1
    return bool(done)
