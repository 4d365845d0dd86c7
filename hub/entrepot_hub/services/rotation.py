"""Changing the master key, such that a kill at any moment costs nothing.

First both keys are written down, each sealed under the other (``master.change`` in the hub's folder): from then on
whoever has one of them opens everything, whatever each secret is sealed under. Then the database names the new key, so
that nothing more is sealed under the old one; then every secret is sealed again, of which only its wrapped data key
changes; and when everything was seen to open with the new key alone, the old one is destroyed. Repeated, it goes on
where it stopped.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from entrepot.core.errors import Conflict, EntrepotError, InvalidInput
from entrepot_hub.services.desk import Desk, Operation, Request, View

if TYPE_CHECKING:  # a command that asks a running hub has no use for a database
    from entrepot_hub.adapters.database import Database
    from entrepot_hub.core.master_keys import Change, MasterKeys
    from entrepot_hub.core.sealing import MasterKey
    from entrepot_hub.services.settings import HubSettings


class RotateMaster(Request, frozen=True, kw_only=True):
    """Change the master key, to this one (64 hex digits, a secret) or to a new one."""

    new_key: Annotated[str, msgspec.Meta(max_length=1024)] | None = None

    def __repr__(self) -> str:
        return f"RotateMaster(new_key={'***' if self.new_key else None})"


class RotationView(View, frozen=True, kw_only=True):
    """What was done: fingerprints of the keys, and how many secrets the new one opens. ``source``: where the hub has
    its master key from, ``file``, ``command`` or ``environment``. ``resumed``: it had been begun before. ``done``: the
    old key is gone; else the hub has still to be given the new one, where ``source`` says."""

    old: str
    new: str
    secrets: int
    source: str
    resumed: bool
    done: bool


async def rotate_master(desk: Desk, asked: RotateMaster, actor: str) -> RotationView:
    """Change the master key, or finish a change that was begun.

    Raises InvalidInput (``invalid-key``; ``invalid-setting`` where the new key has to be named), Conflict (``in-use``)
    for another key than the change was begun with, Denied for secrets that open with neither key, or a key's file that
    cannot be written; nothing was changed then.
    """
    from entrepot_hub.adapters.sealed_rows import SealedRows
    from entrepot_hub.core.master_keys import MasterKeys
    from entrepot_hub.services import identity

    settings, rows = desk.settings, SealedRows(desk.database)
    source = _source(settings)
    given = await asyncio.to_thread(identity.load_master, settings)
    change = await asyncio.to_thread(identity.load_change, settings, given)
    resumed = change is not None
    if change is None:
        change = _begin(given, asked.new_key, source)
        both = MasterKeys(change.new, change.old)
        await rows.check(both)
        await asyncio.to_thread(identity.load_identity, settings, both)
        if source == "file":
            await asyncio.to_thread(identity.check_master_place, settings)
        await asyncio.to_thread(identity.keep_change, settings, change)
    elif asked.new_key is not None and _parse(asked.new_key) != change.new:
        raise Conflict(
            "a change to another master key was begun and is not finished",
            kind="in-use",
            hint="Finish it first: entrepot-hub rotate-master-key",
        )
    both = MasterKeys(change.new, change.old)
    for keys in (desk.vault.keys, desk.registry.keys):
        keys.also(change.old)
        keys.turn(change.new)
    desk.vault.give_secrets()
    detail = {"old": change.old.fingerprint, "new": change.new.fingerprint}
    await rows.turn(change.new, detail, now=desk.clock(), actor=actor)
    await rows.reseal(both, change.new)
    await asyncio.to_thread(identity.reseal_identity, settings, both, change.new)
    count = await _check_new(settings, desk.database, change)
    if source == "file":
        await asyncio.to_thread(identity.keep_master, settings, change.new)
    done = source == "file" or given == change.new
    if done:
        await asyncio.to_thread(identity.drop_change, settings)
    for keys in (desk.vault.keys, desk.registry.keys):
        keys.only(change.new)
    return RotationView(**detail, secrets=count, source=source, resumed=resumed, done=done)


async def finish_change(settings: HubSettings, database: Database, keys: MasterKeys) -> list[str]:
    """As the hub starts: forget a change of the master key that is done. What the admin has still to do otherwise, in
    sentences. Raises what reading the secrets raises."""
    from entrepot_hub.services import identity

    given = keys.sealing
    change = await asyncio.to_thread(identity.load_change, settings, given)
    if change is None:
        return []
    try:
        await _check_new(settings, database, change)
    except EntrepotError as error:
        if error.kind != "denied":
            raise
        return ["a change of the master key is not finished: entrepot-hub rotate-master-key"]
    if given != change.new:
        if _source(settings) == "file":
            return ["a change of the master key is not finished: entrepot-hub rotate-master-key"]
        return [f"the hub is still given its old master key, by {_source(settings)}: give it the new one"]
    await asyncio.to_thread(identity.drop_change, settings)
    keys.only(change.new)
    return []


#: What can be asked for.
OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {
    "master.rotate": Operation(RotateMaster, RotationView, rotate_master),
}


def _source(settings: HubSettings) -> str:
    if settings.master_key is not None:
        return "environment"
    return "command" if settings.master.command else "file"


def _begin(given: MasterKey, named: str | None, source: str) -> Change:
    from entrepot_hub.core.master_keys import Change
    from entrepot_hub.core.sealing import KEY_LENGTH, MasterKey

    if named is None and source != "file":
        raise InvalidInput(
            f"the hub has its master key from the {source}, where a new one cannot be put by this command",
            kind="invalid-setting",
            hint="Make a new one (64 hexadecimal digits) and name it with --new-key-file or --new-key-command.",
        )
    new = MasterKey(secrets.token_bytes(KEY_LENGTH)) if named is None else _parse(named)
    if new == given:
        raise InvalidInput("this is the master key that the hub has", kind="invalid-key")
    return Change(given, new)


def _parse(text: str) -> MasterKey:
    from entrepot_hub.core.sealing import MasterKey

    return MasterKey.parse(text)


async def _check_new(settings: HubSettings, database: Database, change: Change) -> int:
    """How many secrets there are, if the new key alone opens them all; Denied if not."""
    from entrepot_hub.adapters.sealed_rows import SealedRows
    from entrepot_hub.core.master_keys import MasterKeys
    from entrepot_hub.services.identity import load_identity

    await asyncio.to_thread(load_identity, settings, change.new)
    return 1 + await SealedRows(database).check(MasterKeys(change.new))
