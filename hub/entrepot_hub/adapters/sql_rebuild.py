"""Rebuilding the SQL ledger from the bucket: what is held back, what is taken in, how far it has come.

A hub that lost its database does not know which PUT URLs it signed, and they live on for a quarter of an hour. What
they were signed for was reserved, so it is at most what of the quota was not in the bucket then. Part of that is **held
back**: charged, as the reservation of an object that nobody can name, until no such URL can land anything. What does
land is taken out of it. Until a channel's listing was read to its end, everything that is free is held back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot.core.exchange.settings import ExchangeSettings
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.ledger_rows import (
    Account,
    LedgerRows,
    Slot,
    account,
    find_object,
    keep_account,
    keep_objects,
    new_object,
)
from entrepot_hub.core.ledger import ObjectRecord, ObjectRef, ObjectStatus, charge
from entrepot_hub.core.transitions import nothing

_HOLD_LOCK: Final = bytes(8)
_HOLD_STREAM: Final = b"\xff" + bytes(31)
_MARK: Final = "rebuild"
#: Stands behind the export's id until somebody uses the database that was made of it.
_UNUSED: Final = "?"
#: Until a listing was read to its end: longer than anybody waits for it.
_ENDLESS: Final = 366 * 86_400.0


class Rebuilding(msgspec.Struct, frozen=True, kw_only=True):
    """How far the rebuilding of a channel is. ``until``: when no URL of before can land any more (unix seconds);
    ``strict``: all that is free is held back until then, else half of it; ``cursor``: the key after which the listing
    goes on; ``counts``: what was found."""

    until: float
    strict: bool
    done: bool = False
    cursor: str | None = None
    counts: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes held back, and until when."""

    size: int
    until: float


class SqlRebuild(LedgerRows):
    """The ledger's side of a rebuilding."""

    def begin_rebuild(self, channels: list[str], export: str, rebuilding: Rebuilding, now: float) -> None:
        """These channels are to be rebuilt, out of the export of this id: all of their quotas is held back."""
        with self._transaction() as connection:
            _keep(connection, _MARK, (export + _UNUSED).encode())
            for name in channels:
                of = account(connection, name, "own")
                free = of.free + self._held(connection, of).size
                self._hold(connection, of, max(free, 0), now + _ENDLESS)
                _keep(connection, f"{_MARK}:{name}", msgspec.json.encode(rebuilding))

    def rebuilt_from(self) -> tuple[str | None, bool]:
        """The id of the export that this database was made of, if it was, and whether it was used since."""
        with self._transaction() as connection:
            found = (_value(connection, _MARK) or b"").decode()
            return found.removesuffix(_UNUSED) or None, not found.endswith(_UNUSED)

    def use_rebuilt(self) -> None:
        """The database that was made of an export is used from now on: it is not made anew any more."""
        with self._transaction() as connection:
            found, _ = self.rebuilt_from()
            if found is not None:
                _keep(connection, _MARK, found.encode())

    def rebuilding(self, channel: str) -> Rebuilding | None:
        """How far the channel's rebuilding is; None if it was never rebuilt."""
        with self._transaction() as connection:
            return _read(connection, channel)

    def note_rebuild(self, channel: str, cursor: str | None, counts: dict[str, int], now: float) -> Rebuilding:
        """A page was taken in; without a ``cursor`` it was the last. From then on no more is held back than is
        needed."""
        with self._transaction() as connection:
            of = account(connection, channel, "own")
            known = _read(connection, channel)
            assert known is not None
            if known.done:
                return known  # by another hub
            state = msgspec.structs.replace(known, cursor=cursor, counts=counts, done=cursor is None)
            if state.done:
                free = max(of.free + self._held(connection, of).size, 0)
                wanted = 0 if now > state.until else free if state.strict else free // 2
                self._hold(connection, of, wanted, state.until)
            _keep(connection, f"{_MARK}:{channel}", msgspec.json.encode(state))
            return state

    def held(self, channel: str) -> Held | None:
        """What is held back of the channel's quota, if anything is."""
        with self._transaction() as connection:
            found = self._held(connection, account(connection, channel))
            return found if found.until else None

    def entomb(self, ref: ObjectRef, until: float) -> None:
        """A 0-byte object at this key, of which nothing was known, holds it against a PUT that may land ``until``
        then."""
        with self._transaction() as connection:
            of = account(connection, ref.channel, "own")
            slot = find_object(connection, of, ref)
            before = nothing(ref) if slot is None else slot.record
            if before.status is ObjectStatus.ABSENT:
                after = replace(before, status=ObjectStatus.TOMBSTONE, tombstone=True, put_until=until)
                self._write(connection, of, slot, after)

    def _held(self, connection: Connection, of: Account) -> Held:
        """The same inside a transaction; nothing, if nothing is."""
        slot = find_object(connection, of, _hold_ref(of.name))
        if slot is None or slot.record.status is not ObjectStatus.RESERVED:
            return Held(0, 0.0)
        known = _read(connection, of.name)
        return Held(slot.record.size, slot.record.put_until if known is None else known.until)

    def _give_back(self, connection: Connection, of: Account, size: int) -> None:
        """Hold back so many bytes less, as far as there are any."""
        slot = find_object(connection, of, _hold_ref(of.name))
        if slot is not None and slot.record.status is ObjectStatus.RESERVED:
            left = max(slot.record.size - size, 0)
            self._write(connection, of, slot, replace(slot.record, size=left))

    def _hold(self, connection: Connection, of: Account, size: int, until: float) -> None:
        ref = _hold_ref(of.name)
        record = ObjectRecord(ref, ObjectStatus.RESERVED, size=size, put_until=until)
        self._write(connection, of, find_object(connection, of, ref), record)

    @staticmethod
    def _write(connection: Connection, of: Account, slot: Slot | None, record: ObjectRecord) -> None:
        """An object's record, new or not, with what it changes in the account."""
        before = nothing(record.ref) if slot is None else slot.record
        of.charged += charge(record) - charge(before)
        if slot is None:
            connection.execute(sa.insert(t.objects).values(new_object(Slot(None, record), of.id)))
        else:
            slot.record = record
            keep_objects(connection, [slot])
        keep_account(connection, of)


def held_back(channel: sa.ColumnElement[int]) -> sa.ColumnElement[bool]:
    """Which of the objects is what is held back in the channel of this row id."""
    o = t.objects.c
    reserved = o.status == ObjectStatus.RESERVED.value
    return sa.and_(o.channel_id == channel, o.lock == _HOLD_LOCK, o.stream == _HOLD_STREAM, o.number == 0, reserved)


def rebuilding_of(channel: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Which of the settings tells of the rebuilding of the channel of this name."""
    return t.settings.c.key == sa.literal(f"{_MARK}:").concat(channel)


def held_until(rebuilding: bytes | None) -> float | None:
    """Until when (unix seconds) bytes are held back, by the value of that setting."""
    if rebuilding is None:
        return None
    return msgspec.json.decode(bytes(rebuilding), type=Rebuilding).until + ExchangeSettings().put_grace


def _hold_ref(channel: str) -> ObjectRef:
    """The object that stands for what nobody can name: of no lock and of no stream that there can be."""
    return ObjectRef(channel, _HOLD_LOCK, _HOLD_STREAM, 0)


def _read(connection: Connection, channel: str) -> Rebuilding | None:
    found = _value(connection, f"{_MARK}:{channel}")
    return None if found is None else msgspec.json.decode(found, type=Rebuilding)


def _value(connection: Connection, key: str) -> bytes | None:
    found = connection.execute(sa.select(t.settings.c.value).where(t.settings.c.key == key)).scalar()
    return None if found is None else bytes(found)


def _keep(connection: Connection, key: str, value: bytes) -> None:
    updated = connection.execute(sa.update(t.settings).where(t.settings.c.key == key).values(value=value))
    if not updated.rowcount:
        connection.execute(sa.insert(t.settings).values(key=key, value=value))
