"""Tuning the C library's allocator is done where there is one to tune."""

from __future__ import annotations

import subprocess
import sys


def test_glibc_takes_it() -> None:
    """In a process of its own, mallopt accepts both thresholds, or there is none and nothing is done."""
    program = (
        "import ctypes\n"
        "from entrepot_hub.adapters.memory import keep_freed_memory\n"
        "assert keep_freed_memory() is hasattr(ctypes.CDLL(None), 'mallopt')\n"
        "bytearray(40 << 20)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
