"""The way back from an export: a hub out of one file, and its ledger out of what lies in the buckets.

First who the hub is and who may do what: into an empty folder, which appears whole or not at all, or, where only the
database was lost, into the database of the folder that is there. Then each channel's listing is read, and every object
that proves itself by its header is the ledger's again, whatever the quota; what is too much, the running hub evicts by
its rule. Stopped at any moment and repeated, it goes on; a hub that is started meanwhile goes on by itself.

Objects may land that were granted before: for twenty minutes part of the quota is held back for them
(:mod:`entrepot_hub.adapters.sql_rebuild`), empty objects are taken for the tombstones that they are, and the running
hub compares bucket and ledger every few minutes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final

from entrepot.core.errors import Conflict, EntrepotError, to_wire
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.export_rows import holds_nothing, wipe, write_document
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.adapters.sql_ledger import SqlLedger
from entrepot_hub.adapters.sql_rebuild import Rebuilding
from entrepot_hub.core.export import Document
from entrepot_hub.core.nats_identity import NatsIdentity
from entrepot_hub.core.sealing import MasterKey
from entrepot_hub.services.administration import ADMIN
from entrepot_hub.services.bucket_keeper import BucketKeeper
from entrepot_hub.services.channels import Channels
from entrepot_hub.services.custody import Custody
from entrepot_hub.services.desk import View
from entrepot_hub.services.identity import database_url, load_identity, load_keys, restore_hub
from entrepot_hub.services.reconciliation import Reconciler
from entrepot_hub.services.settings import HubSettings, load_settings
from entrepot_hub.services.vault import Vault
from entrepot_hub.services.web.admin_client import answers

#: Seconds beyond the life of a PUT URL for which the running hub still looks for what landed: two of its rounds.
_ROUNDS: Final = 600.0
_AUDIT: Final = "hub.rebuild"


class RebuiltChannel(View, frozen=True, kw_only=True):
    """A channel whose ledger is that of its bucket again. ``listed`` keys of ``bytes``, of which were ``adopted``,
    ``removed`` (they prove nothing), ``tombstones``, ``foreign`` (left alone); ``agreed``: known already. ``held``
    bytes of the quota are held back until ``held_until``. ``error``: why it is not finished."""

    name: str
    listed: int = 0
    bytes: int = 0
    adopted: int = 0
    removed: int = 0
    tombstones: int = 0
    foreign: int = 0
    agreed: int = 0
    quota: int = 0
    charged: int = 0
    held: int = 0
    held_until: float | None = None
    error: dict[str, object] | None = None


class Rebuilt(View, frozen=True, kw_only=True):
    """What was rebuilt. ``resumed``: it had been begun before; ``changed`` False: it had been finished before, so that
    nothing was done, and each channel's counts are those of then."""

    hub: str
    folder: str
    resumed: bool
    changed: bool
    nodes: int
    channels: list[RebuiltChannel]

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return all(channel.error is None for channel in self.channels)


async def rebuild_hub(
    folder: Path,
    document: Document,
    export: bytes,
    *,
    settings_text: str | None = None,
    master_key: str | None = None,
    strict: bool = False,
    told: Callable[[str, Rebuilding], None] = lambda _name, _state: None,
    clock: Callable[[], float] = time.time,
) -> Rebuilt:
    """The hub of an export (its bytes, and what is in them), in ``folder``.

    ``settings_text``: another ``hub.toml`` than the export's; ``master_key``: from the environment; ``strict``: hold
    back all that is free as long as something may land, else half of it; ``told``: of every page of a channel. A
    channel whose bucket does not answer is named in what is returned; the running hub goes on with it.

    Raises Conflict (``exists``: there is another hub, or this one with a database that is not empty; ``in-use``: it
    runs), and what opening master key and database raises.
    """
    begin = partial(_begin, document=document, export=sha256(export).hexdigest()[:32], strict=strict, clock=clock)
    if await asyncio.to_thread(_is_empty, folder):
        text = document.settings if settings_text is None else settings_text
        identity = NatsIdentity.load(document.identity)
        fill = partial(begin, again=True)
        resumed = False
        await asyncio.to_thread(restore_hub, folder, text, identity, master_key, fill)
    else:
        resumed = await asyncio.to_thread(_into, folder, document, master_key, begin)
    settings = replace(await asyncio.to_thread(load_settings, folder), master_key=master_key)
    return await _read_buckets(settings, document, resumed, told, clock)


def _is_empty(folder: Path) -> bool:
    """Whether there is no hub and nothing else. Blocking."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _begin(
    database: Database,
    master: MasterKey,
    *,
    document: Document,
    export: str,
    strict: bool,
    clock: Callable[[], float],
    again: bool = False,
) -> bool:
    """Put into the database who may do what; False if that was done before. With ``again`` it is done anew then, if
    nobody used it since: what is sealed there is sealed under a master key that went with a killed attempt.
    Blocking."""
    ledger, settings, now = SqlLedger(database), ExchangeSettings(), clock()
    with database.transaction() as connection:
        database.migrate_now()  # all or nothing: a killed attempt leaves no database that a hub could start with
        before, used = ledger.rebuilt_from()
        if before == export and not again:
            return False
        if before == export and not used:
            wipe(connection)
        if not holds_nothing(connection):
            raise Conflict(
                "the hub's database is not empty: what it holds is not overwritten",
                kind="exists",
                hint="Rebuild into an empty folder and an empty database; to compare a channel with its bucket: "
                "entrepot-hub channel reconcile",
            )
        write_document(connection, document, master, now)
        state = Rebuilding(until=now + settings.put_url + _ROUNDS, strict=strict)
        ledger.begin_rebuild([channel.name for channel in document.channels], export, state, now)
    return True


def _into(
    folder: Path, document: Document, master_key: str | None, begin: Callable[[Database, MasterKey], bool]
) -> bool:
    """The same for a folder that holds this hub; whether it had been done before. Blocking."""
    try:
        settings = replace(load_settings(folder), master_key=master_key)
        if answers(settings.socket):
            raise Conflict("a hub is running in this folder", kind="in-use", folder=str(folder))
        keys = load_keys(settings)
        same = load_identity(settings, keys).hub_public == document.hub
    except EntrepotError as error:
        if error.kind not in {"not-running", "no-such-file"}:
            raise
        same = False
    if not same:
        raise Conflict(
            f"{folder} is not empty, and what is in it is not the hub of this export",
            kind="exists",
            hint="Name another folder, or move what is there away.",
            folder=str(folder),
        )
    database = Database(database_url(settings))
    try:
        return not begin(database, keys.sealing)
    finally:
        database.close()


async def _read_buckets(
    settings: HubSettings,
    document: Document,
    resumed: bool,
    told: Callable[[str, Rebuilding], None],
    clock: Callable[[], float],
) -> Rebuilt:
    keys = await asyncio.to_thread(load_keys, settings)
    async with await asyncio.to_thread(lambda: Database(database_url(settings))) as database:
        registry, ledger = Registry(database, keys), SqlLedger(database)
        await database.call(ledger.use_rebuilt)
        vault = Vault(keys, document.hub, settings.urls[0], clock)
        custody = Custody(registry, vault, clock, ADMIN)
        async with Channels(registry, custody.open, clock) as channels:
            keeper = BucketKeeper(database, ledger, channels, ExchangeSettings(), clock)
            reconciler = Reconciler(database, ledger, channels, keeper, clock)
            found: list[RebuiltChannel] = []
            changed = not resumed
            for name in await channels.names():
                failed: EntrepotError | None = None
                try:
                    changed |= await reconciler.rebuild(name, partial(told, name))
                except EntrepotError as error:
                    changed, failed = (
                        True,
                        error,
                    )  # told below: one bucket that does not answer keeps no other channel from its ledger
                found.append(await database.call(_told, ledger, name, failed))
            detail: dict[str, object] = {"made_at": document.made_at, "adopted": sum(each.adopted for each in found)}
            if changed:
                await registry.audit(ADMIN, _AUDIT, "hub", detail, now=clock())
            nodes = len(await registry.nodes())
    return Rebuilt(
        hub=document.hub, folder=str(settings.folder), resumed=resumed, changed=changed, nodes=nodes, channels=found
    )


def _told(ledger: SqlLedger, name: str, error: EntrepotError | None) -> RebuiltChannel:
    state, held, usage = ledger.rebuilding(name), ledger.held(name), ledger.usage(name)
    counts = {} if state is None else state.counts
    return RebuiltChannel(
        name=name,
        **{word: counts.get(word, 0) for word in ("listed", "bytes", "adopted", "removed", "foreign", "agreed")},
        tombstones=counts.get("tombstone", 0),
        quota=usage.quota,
        charged=usage.charged,
        held=0 if held is None else held.size,
        held_until=None if held is None else held.until + ExchangeSettings().put_grace,
        error=None if error is None else to_wire(error),
    )
