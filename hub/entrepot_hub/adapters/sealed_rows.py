"""What the database holds sealed under the master key, and which master key that is.

The database names the key by its fingerprint from the moment a change of it begins: whoever seals anything looks there,
in the same transaction, so that nothing is sealed under a key that is about to be destroyed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot.core.errors import Denied
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry_rows import write_audit
from entrepot_hub.core.master_keys import MasterKeys
from entrepot_hub.core.sealing import RESEAL_RANDOM, MasterKey, bucket_place, invite_place, opens

_NAME: Final = "master"
#: PostgreSQL's lock between whoever seals and whoever changes the key: "entrekey" as a number.
_LOCK: Final = int.from_bytes(b"entrekey")
#: Rows that one transaction seals again.
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A column of sealed blobs; ``place`` gives the associated data of one from its row."""

    id: sa.Column[Any]
    names: sa.Column[Any]
    blob: sa.Column[Any]
    place: Callable[[str], bytes]


_COLUMNS: Final = (
    _Sealed(t.buckets.c.id, t.buckets.c.url, t.buckets.c.credentials, bucket_place),
    _Sealed(t.invites.c.id, t.invites.c.id, t.invites.c.proof, invite_place),
)


def sealing_key(connection: Connection, keys: MasterKeys) -> MasterKey:
    """The key to seal with in this transaction. Denied if it is none of these: another hub on this database has another
    master key now."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(_LOCK)))
    name = _named(connection)
    key = keys.sealing if name is None else keys.named(name)
    if key is None:
        raise Denied(
            "the master key was changed, and this hub has the old one",
            hint="Give this hub the new master key, as with the first: entrepot-hub rotate-master-key --new-key-file",
        )
    return key


def sealed_now(connection: Connection, keys: MasterKeys, blob: bytes | None, place: bytes) -> bytes | None:
    """The blob as it may be written in this transaction: under the key that the database names. Raises as
    :func:`sealing_key`."""
    key = sealing_key(connection, keys)
    if blob is None or _named(connection) is None:
        return blob
    return keys.reseal(blob, to=key, associated=place, random=secrets.token_bytes(RESEAL_RANDOM))


class SealedRows:
    """All that is sealed in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def turn(self, key: MasterKey, detail: Mapping[str, object], *, now: float, actor: str) -> None:
        """From now on everything is sealed under this key. Noted in the audit log, once."""

        def work(connection: Connection) -> None:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            before = _named(connection)
            if before == key.fingerprint:
                return
            value = key.fingerprint.encode()
            if before is None:
                connection.execute(sa.insert(t.settings).values(key=_NAME, value=value))
            else:
                connection.execute(sa.update(t.settings).where(t.settings.c.key == _NAME).values(value=value))
            write_audit(connection, now, actor, "master.rotate", "hub", detail)

        await self._database.run(work)

    async def check(self, keys: MasterKeys) -> int:
        """How many secrets there are. Raises Denied if one of them opens with none of these keys, Corrupt."""
        return await self._walk(keys, None)

    async def reseal(self, keys: MasterKeys, to: MasterKey) -> int:
        """Seal everything under ``to`` that is not, a page in a transaction; may be stopped at any moment and repeated.
        How many secrets there are. Raises as :meth:`check`."""
        return await self._walk(keys, to)

    async def _walk(self, keys: MasterKeys, to: MasterKey | None) -> int:
        count = 0
        for column in _COLUMNS:
            after = None
            while True:
                page, after = await self._database.run(_page, column, after, keys, to)
                count += page
                if after is None:
                    break
        return count


def _page(
    connection: Connection, column: _Sealed, after: object, keys: MasterKeys, to: MasterKey | None
) -> tuple[int, Any]:
    query = sa.select(column.id, column.names.label("names"), column.blob.label("blob")).where(column.blob.is_not(None))
    if after is not None:
        query = query.where(column.id > after)
    rows = connection.execute(query.order_by(column.id).limit(_PAGE)).all()
    changed = []
    for row in rows:
        blob, place = bytes(row.blob), column.place(row.names)
        if to is None:
            if not any(opens(blob, key=key, associated=place) for key in keys.all):
                raise Denied(
                    "the database holds a secret that this master key does not open",
                    hint="Was the master key changed by another hub on this database? Name that key.",
                )
            continue
        now = keys.reseal(blob, to=to, associated=place, random=secrets.token_bytes(RESEAL_RANDOM))
        if now != blob:
            changed.append({"row": row[0], "was": blob, "now": now})
    if changed:
        # Only where it is still what was read: new keys may have come meanwhile, under the new master key.
        connection.execute(
            sa.update(column.id.table)
            .where(column.id == sa.bindparam("row"), column.blob == sa.bindparam("was"))
            .values({column.blob.name: sa.bindparam("now")}),
            changed,
        )
    return len(rows), rows[-1][0] if len(rows) == _PAGE else None


def _named(connection: Connection) -> str | None:
    value = connection.execute(sa.select(t.settings.c.value).where(t.settings.c.key == _NAME)).scalar()
    return None if value is None else bytes(value).decode()
