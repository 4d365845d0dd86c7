"""How a command reaches the hub: through its socket when it runs, on its database when none runs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from entrepot_hub.services.desk import Desk, Request
    from entrepot_hub.services.settings import HubSettings

HOME_VARIABLE = "ENTREPOT_HUB_HOME"
MASTER_VARIABLE = "ENTREPOT_HUB_MASTER_KEY"


class Hub(Protocol):
    """Somebody who does operations."""

    async def call(self, operation: str, asked: Request) -> Any:
        """The answer to one operation."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """The way to the hub, and whether it runs."""

    hub: Hub
    running: bool


def home(folder: Path | None) -> Path:
    """The hub's folder: as told, or where this user's data lies."""
    if folder is not None:
        return folder.absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("entrepot-hub"))


def settings_of(folder: Path | None) -> HubSettings:
    """The settings of the hub in a folder, with the master key of the environment, if one is there."""
    from entrepot_hub.services.settings import load_settings

    return replace(load_settings(home(folder)), master_key=os.environ.get(MASTER_VARIABLE))


@asynccontextmanager
async def access(settings: HubSettings) -> AsyncIterator[Access]:
    """The way to the hub of these settings. Raises what opening its socket or its database raises."""
    from entrepot_hub.services.web.admin_client import AdminClient, answers

    if await asyncio.to_thread(answers, settings.socket):
        async with AdminClient(settings.socket) as client:
            yield Access(client, running=True)
        return
    from entrepot.core.exchange.settings import ExchangeSettings
    from entrepot_hub.adapters.database import Database
    from entrepot_hub.adapters.registry import Registry
    from entrepot_hub.adapters.sql_ledger import SqlLedger
    from entrepot_hub.services.administration import ADMIN, Administration
    from entrepot_hub.services.bucket_keeper import BucketKeeper
    from entrepot_hub.services.channels import Channels
    from entrepot_hub.services.custody import Custody
    from entrepot_hub.services.desk import Desk
    from entrepot_hub.services.identity import database_url, load_identity, load_keys, ready_database
    from entrepot_hub.services.vault import Vault

    keys = await asyncio.to_thread(load_keys, settings)
    identity = await asyncio.to_thread(load_identity, settings, keys)
    # SQLAlchemy looks at the file system as it is set up.
    async with await asyncio.to_thread(lambda: Database(database_url(settings))) as database:
        await database.call(ready_database, settings, database)
        registry, ledger = Registry(database, keys), SqlLedger(database)
        vault = Vault(keys, identity.hub_public, settings.urls[0], time.time)
        administration = Administration(
            registry,
            vault,
            hub_public=identity.hub_public,
            urls=settings.urls,
            clock=time.time,
            bus=settings.nats_told,
        )
        custody = Custody(registry, vault, time.time, ADMIN)
        async with Channels(registry, custody.open, time.time) as channels:
            desk = Desk(
                administration=administration,
                registry=registry,
                database=database,
                ledger=ledger,
                vault=vault,
                channels=channels,
                keeper=BucketKeeper(database, ledger, channels, ExchangeSettings(), time.time),
                settings=settings,
                clock=time.time,
            )
            yield Access(_Direct(desk), running=False)


class _Direct:
    """The operations, without a hub."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def call(self, operation: str, asked: Request) -> Any:
        """The answer to one operation."""
        from entrepot_hub.services.administration import ADMIN
        from entrepot_hub.services.operations import OPERATIONS

        return await OPERATIONS[operation].call(self._desk, asked, ADMIN)


def runs(settings: HubSettings) -> bool:
    """Whether a hub runs with these settings. Raises Denied where its socket is not for us to open."""
    from entrepot_hub.services.web.admin_client import answers

    return answers(settings.socket)


def ask(folder: Path | None, operation: str, asked: Request) -> tuple[Any, bool]:
    """The answer to one operation, and whether the hub runs."""

    settings = settings_of(folder)

    async def work() -> tuple[Any, bool]:
        async with access(settings) as way:
            return await way.hub.call(operation, asked), way.running

    return asyncio.run(work())
