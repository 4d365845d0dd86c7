"""``entrepot.add``, ``entrepot.get`` and ``entrepot.open``: one blocking node for a whole program, with the settings
that the command line would have.

An entry point like the commands: the environment is read when the node is first needed.
"""

from __future__ import annotations

import atexit
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from entrepot.cli.environment import read_environment

if TYPE_CHECKING:
    from entrepot.services.blocking import Blocking, BlockingFile
    from entrepot.services.node import Added, Got
    from entrepot.services.progress import OnProgress
    from entrepot.services.targets import Target

_shared: Blocking | None = None
_guard = threading.Lock()


def shared() -> Blocking:
    """The program's node, opened at first use and closed when the program ends.

    ``ENTREPOT_HOME``, ``ENTREPOT_CA_FILE``, ``ENTREPOT_PLAIN_HTTP`` and the proxy variables count as they do for the
    commands. Raises what :func:`read_environment` and opening a store raise.
    """
    global _shared  # noqa: PLW0603  # one for the process is what it is for
    from entrepot.services.blocking import Blocking

    with _guard:
        if _shared is None:
            node = Blocking(read_environment().settings())
            node.start()
            # Closing takes worker threads, and those are ended before what atexit calls. What threading calls is
            # called in the reverse order: before the end of the thread pools, which were loaded by now.
            at_end = getattr(threading, "_register_atexit", atexit.register)
            at_end(node.close)
            _shared = node
        return _shared


def add(
    path: Path | str,
    *,
    channel: str | None = None,
    hub: str | None = None,
    copy: bool = False,
    progress: OnProgress | None = None,
) -> Added:
    """:meth:`Blocking.add` of the :func:`shared` node."""
    return shared().add(path, channel=channel, hub=hub, copy=copy, progress=progress)


def get(
    target: Target,
    output: Path | str | None = None,
    *,
    force: bool = False,
    channel: str | None = None,
    hub: str | None = None,
    deadline: float | None = None,
    wait: float | None = None,
    progress: OnProgress | None = None,
) -> Got:
    """:meth:`Blocking.get` of the :func:`shared` node."""
    return shared().get(
        target, output, force=force, channel=channel, hub=hub, deadline=deadline, wait=wait, progress=progress
    )


def open(  # noqa: A001  # as in entrepot.open
    target: Target, *, channel: str | None = None, hub: str | None = None, deadline: float | None = None
) -> BlockingFile:
    """:meth:`Blocking.open` of the :func:`shared` node: a binary file to read and seek in."""
    return shared().open(target, channel=channel, hub=hub, deadline=deadline)
