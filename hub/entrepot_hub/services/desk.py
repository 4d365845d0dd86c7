"""What an operation of the admin or of an owner may use, and the form of one.

Each feature has a module with its requests, its answers and a table of operations; :mod:`.operations` puts them
together for the admin's socket, the API and the command line.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:  # a command that asks a running hub has no use for a database
    from entrepot_hub.adapters.database import Database
    from entrepot_hub.adapters.registry import Registry
    from entrepot_hub.adapters.sql_ledger import SqlLedger
    from entrepot_hub.services.administration import Administration
    from entrepot_hub.services.arbiter import Arbiter
    from entrepot_hub.services.bucket_keeper import BucketKeeper
    from entrepot_hub.services.channels import Channels
    from entrepot_hub.services.overview import Overview
    from entrepot_hub.services.settings import HubSettings
    from entrepot_hub.services.vault import Vault


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is asked for."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what is answered. Times are unix seconds, sizes bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """``channels`` opens buckets; where no hub runs they are opened for the one operation. ``arbiter``: of a running
    hub, else None."""

    administration: Administration
    registry: Registry
    database: Database
    ledger: SqlLedger
    vault: Vault
    channels: Channels
    keeper: BucketKeeper
    settings: HubSettings
    clock: Callable[[], float]
    arbiter: Arbiter | None = None
    overview: Overview | None = None


@dataclass(frozen=True, slots=True)
class Operation[R: Request, A]:
    """One thing that can be asked for: the form of the request, of the answer, and what does it. The last argument of
    ``call`` is who asks: ``admin``, or an owner's public key."""

    request: type[R]
    answer: type[A]
    call: Callable[[Desk, R, str], Awaitable[A]]
