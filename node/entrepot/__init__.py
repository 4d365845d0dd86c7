"""entrepot: files stay where they are; those who may read them fetch them through a small cache.

async with entrepot.Node(entrepot.NodeSettings(home=...)) as node:
    got = await node.get("entrepot://demo@hub.example.org/ff0123.../big.nwb")

Without asyncio: ``entrepot.add``, ``entrepot.get`` and ``entrepot.open`` use the node that the command line uses, with
``ENTREPOT_HOME`` and its like; :class:`entrepot.Blocking` any other. Neither that nor :class:`entrepot.Node` reads the
environment: without settings their home is :func:`entrepot.default_home`. What is here is the public interface; it is
loaded when it is first used.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from entrepot.cli.shared import add, get, open  # noqa: A004  # entrepot.open
    from entrepot.core import errors
    from entrepot.core.errors import (
        Conflict,
        Corrupt,
        Denied,
        EntrepotError,
        Internal,
        InvalidInput,
        NotFound,
        RetryLater,
    )
    from entrepot.core.identifiers import Opening, StreamId, StreamKind
    from entrepot.core.lock import SchemaLock
    from entrepot.core.uri import StreamUri
    from entrepot.services.blocking import Blocking, BlockingFile
    from entrepot.services.estimate import Info
    from entrepot.services.inquiry import Story
    from entrepot.services.node import Added, Got, Joined, Node
    from entrepot.services.progress import Progress
    from entrepot.services.reading import RemoteFile
    from entrepot.services.settings import NodeSettings, default_home

__all__ = [
    "Added",
    "Blocking",
    "BlockingFile",
    "Conflict",
    "Corrupt",
    "Denied",
    "EntrepotError",
    "Got",
    "Info",
    "Internal",
    "InvalidInput",
    "Joined",
    "Node",
    "NodeSettings",
    "NotFound",
    "Opening",
    "Progress",
    "RemoteFile",
    "RetryLater",
    "SchemaLock",
    "Story",
    "StreamId",
    "StreamKind",
    "StreamUri",
    "add",
    "default_home",
    "errors",
    "get",
    "open",
]

_PLACES = {
    "entrepot.cli.shared": ["add", "get", "open"],
    "entrepot.core.errors": [
        "Conflict",
        "Corrupt",
        "Denied",
        "EntrepotError",
        "Internal",
        "InvalidInput",
        "NotFound",
        "RetryLater",
        "errors",
    ],
    "entrepot.core.identifiers": ["Opening", "StreamId", "StreamKind"],
    "entrepot.core.lock": ["SchemaLock"],
    "entrepot.core.uri": ["StreamUri"],
    "entrepot.services.blocking": ["Blocking", "BlockingFile"],
    "entrepot.services.estimate": ["Info"],
    "entrepot.services.inquiry": ["Story"],
    "entrepot.services.node": ["Added", "Got", "Joined", "Node"],
    "entrepot.services.progress": ["Progress"],
    "entrepot.services.reading": ["RemoteFile"],
    "entrepot.services.settings": ["NodeSettings", "default_home"],
}


def __getattr__(name: str) -> object:
    for place, names in _PLACES.items():
        if name in names:
            module = _import_module(place)
            found = module if name == "errors" else getattr(module, name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
