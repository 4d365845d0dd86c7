"""Why a bucket gave no answer, in words that repeat nothing of what a library or an endpoint says."""

from __future__ import annotations

import os
import ssl


def cause_of(error: BaseException) -> str:
    """Why there was no answer, in the system's words or by the kind of error: the words of libraries may be the
    endpoint's, or name an object."""
    found: BaseException | None = error
    timed_out = False
    for _ in range(10):
        if found is None:
            break
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {found.verify_message}"
        if isinstance(found, ssl.SSLError):
            words = (found.reason or type(found).__name__).replace("_", " ").lower()
            return f"no secure connection comes about: {words}"
        if isinstance(found, OSError) and isinstance(found.errno, int) and found.strerror:
            # Of a positive number the system has the words; asyncio has others, with the address in them.
            return os.strerror(found.errno) if found.errno > 0 else found.strerror
        timed_out = timed_out or isinstance(found, TimeoutError)
        found = found.__cause__ or found.__context__
    return "nothing came in time" if timed_out else type(error).__name__
