"""What a folder bucket's files are as objects, and what the operating system's errors are as ours."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from typing import Any

from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater
from entrepot_hub.adapters.buckets.interface import Entry


def entry_of(key: str, status: os.stat_result) -> Entry | None:
    """The object that a file with this status is, ``None`` if it is no plain file.

    Its etag is a hash of length and modification time in nanoseconds.
    """
    if not stat.S_ISREG(status.st_mode):
        return None
    identity = f"{status.st_size} {status.st_mtime_ns}".encode()
    return Entry(
        key=key,
        length=status.st_size,
        etag=hashlib.blake2b(identity, digest_size=16, person=b"entrepot.etag").hexdigest(),
        modified=status.st_mtime_ns / 1e9,
    )


@contextlib.contextmanager
def translated(subject: object) -> Iterator[None]:
    """The one place where the operating system's errors become ours."""
    try:
        yield
    except EntrepotError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        about: dict[str, Any] = {"path": str(subject)[:300], "errno": error.errno}
        match error.errno:
            case errno.ENOSPC | errno.EDQUOT:
                raise RetryLater(
                    "the bucket's disk is full",
                    kind="disk-full",
                    hint="Make room or lower the quotas",
                    **about,
                ) from error
            case errno.EACCES | errno.EPERM | errno.EROFS:
                raise Denied(
                    f"the bucket's folder may not be used: {reason}",
                    kind="unreadable",
                    hint="Give the hub's user the right to read and write there",
                    **about,
                ) from error
            case errno.ENOTDIR | errno.EISDIR | errno.ENAMETOOLONG:
                raise InvalidInput(f"no object can have this key: {reason}", kind="invalid-key", **about) from error
            case _:
                raise RetryLater(
                    f"the bucket's folder cannot be used: {reason}", kind="bucket-unreachable", **about
                ) from error
