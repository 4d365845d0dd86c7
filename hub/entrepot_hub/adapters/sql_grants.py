"""The SQL ledger's grants: who may upload which object, until when."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import batched
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot.core.errors import Internal
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.ledger_rows import (
    CHUNK,
    LIVE_NOW,
    Account,
    Key,
    LedgerRows,
    Slot,
    account,
    find_objects,
    keep_account,
    keep_grants,
    keep_objects,
    key_of,
    live_grants,
    new_object,
    to_grant,
    to_object,
    to_slot,
)
from entrepot_hub.adapters.steady import steady
from entrepot_hub.core.ledger import (
    LIVE,
    GrantOutcome,
    GrantRecord,
    GrantStatus,
    ObjectRecord,
    ObjectRef,
    ObjectView,
    Proposal,
    Refusal,
    charge,
    judge,
    renewed,
)
from entrepot_hub.core.transitions import (
    accepted,
    ended,
    held_by,
    opened,
    repeated,
    reserved,
    restored,
    shortened,
    shrunk,
)

_o, _g, _c = t.objects.c, t.grants.c, t.channels.c

_PLACED: Final = (
    sa.select(t.grants, _c.name.label("channel"), _o.lock, _o.stream, _o.number)
    .join(t.objects, _o.id == _g.object_id)
    .join(t.channels, _c.id == _o.channel_id)
)
_GRANTS: Final = steady(_PLACED.where(_g.grant.in_(sa.bindparam("grants", expanding=True))))
_GRANT: Final = steady(_PLACED.where(_g.grant == sa.bindparam("at_grant")))
_GRANT_LOCKED: Final = steady(_GRANT.with_for_update(of=t.grants))
_SESSION_LOCKED: Final = steady(
    _PLACED.where(_g.node == sa.bindparam("at_node"), _g.session == sa.bindparam("at_session"), LIVE_NOW)
    .order_by(_g.id)
    .with_for_update(of=t.grants)
)
_UPLOADING: Final = steady(
    sa.select(_g.node, _g.session).where(LIVE_NOW, _g.node.in_(sa.bindparam("nodes", expanding=True))).distinct()
)
#: Rows that another hub is ending just now are left to it.
_LAPSED: Final = steady(
    _PLACED.where(LIVE_NOW, _g.lease_until <= sa.bindparam("now"))
    .order_by(_g.lease_until, _g.id)
    .limit(sa.bindparam("most"))
    .with_for_update(of=t.grants, skip_locked=True)
)
_OBJECT_OF: Final = steady(sa.select(t.objects).where(_o.id == sa.bindparam("at_id")))
_GRANTS_OF: Final = steady(sa.select(t.grants).where(_g.object_id == sa.bindparam("at_id")))
_RAISE_PUT_UNTIL: Final = steady(
    sa.update(t.objects)
    .where(_o.id == sa.bindparam("at_id"), _o.put_until < sa.bindparam("at_until"))
    .values(put_until=sa.bindparam("at_until"))
)
_NEW_GRANTS: Final = steady(sa.insert(t.grants))
_NEW_OBJECTS: Final = steady(sa.insert(t.objects).returning(_o.id, _o.channel_id, _o.lock, _o.stream, _o.number))


class SqlGrants(LedgerRows):
    """Permissions to upload: made under the quota, accepted, renewed, ended."""

    def grant(self, proposals: Sequence[Proposal], now: float) -> list[GrantOutcome]:
        """See ``Ledger.grant``."""
        if not proposals:
            return []
        with self._transaction() as connection:
            accounts = {name: account(connection, name, "own") for name in sorted({p.ref.channel for p in proposals})}
            known = _known(connection, [proposal.grant for proposal in proposals])
            slots: dict[ObjectRef, Slot] = {}
            live: dict[ObjectRef, GrantRecord] = {}
            for of in accounts.values():
                keys: dict[Key, None] = dict.fromkeys(key_of(p.ref) for p in proposals if p.ref.channel == of.name)
                found = list(find_objects(connection, of, keys))
                slots.update((slot.record.ref, slot) for slot in found)
                live.update((grant.ref, grant) for grant in live_grants(connection, found).values())
            made: list[GrantRecord] = []
            outcomes = [
                self._judged(proposal, accounts[proposal.ref.channel], known, slots, live, made, now)
                for proposal in proposals
            ]
            if made:
                _keep_made(connection, accounts, slots, made)
            return outcomes

    def _judged(
        self,
        proposal: Proposal,
        of: Account,
        known: dict[bytes, GrantRecord],
        slots: dict[ObjectRef, Slot],
        live: dict[ObjectRef, GrantRecord],
        made: list[GrantRecord],
        now: float,
    ) -> GrantOutcome:
        """The outcome of one proposal, noted in the dictionaries."""
        ref = proposal.ref
        if (before := known.get(proposal.grant)) is not None:
            return repeated(proposal, before)
        slot = slots.get(ref)
        refusal, amount = judge(proposal, None if slot is None else slot.record, live.get(ref), of.free)
        if refusal is not None:
            held = live.get(ref) if refusal is Refusal.HELD else None
            return GrantOutcome(proposal, held, refusal, amount)
        if slot is None:
            slots[ref] = Slot(None, reserved(None, proposal))
        else:
            slot.record = reserved(slot.record, proposal)
        of.charged += amount
        grant = opened(proposal, now)
        live[ref] = known[proposal.grant] = grant
        made.append(grant)
        return GrantOutcome(proposal, grant)

    def accept(
        self,
        grant: bytes,
        node: str,
        digest: bytes,
        lease_until: float,
        put_until: float,
        now: float,
        length: int | None = None,
    ) -> ObjectView:
        """See ``Ledger.accept``."""
        with self._transaction() as connection:
            row = connection.execute(_GRANT, {"at_grant": grant}).one_or_none()
            if row is not None and not self._database.is_sqlite:
                account(connection, row.channel, "share" if length in {None, row.length} else "own")
                row = connection.execute(_GRANT_LOCKED, {"at_grant": grant}).one_or_none()
            before = held_by(None if row is None else _to_placed(row), node, now)
            assert row is not None
            after = accepted(before, digest, lease_until, put_until, now, length)
            keep_grants(connection, [after])
            connection.execute(_RAISE_PUT_UNTIL, {"at_id": row.object_id, "at_until": after.put_until})
            there = connection.execute(_OBJECT_OF, {"at_id": row.object_id}).one()
            if after.length == before.length:
                return ObjectView(to_object(there, row.channel), after)
            return ObjectView(self._shrink(connection, to_slot(there, row.channel)), after)

    @staticmethod
    def _shrink(connection: Connection, slot: Slot) -> ObjectRecord:
        """The object's reservation after a grant of it was accepted for less; its channel's account is this
        transaction's."""
        of, before = account(connection, slot.record.ref.channel), slot.record
        rows = connection.execute(_GRANTS_OF, {"at_id": slot.id})
        slot.record = shrunk(before, [to_grant(row, before.ref) for row in rows])
        of.charged += charge(slot.record) - charge(before)
        keep_objects(connection, [slot])
        keep_account(connection, of)
        return slot.record

    def progress(self, grant: bytes, node: str, sent: int, lease: float, floor: float, now: float) -> GrantRecord:
        """See ``Ledger.progress``."""
        with self._transaction() as connection:
            row = connection.execute(_GRANT_LOCKED, {"at_grant": grant}).one_or_none()
            before = held_by(None if row is None else _to_placed(row), node, now)
            after = renewed(before, sent, now, lease, floor)
            if after != before:
                keep_grants(connection, [after])
            return after

    def end_grant(self, grant: bytes, status: GrantStatus, reason: str | None, now: float) -> GrantRecord | None:
        """See ``Ledger.end_grant``."""
        del now
        with self._transaction() as connection:
            row = connection.execute(_GRANT_LOCKED, {"at_grant": grant}).one_or_none()
            if row is None or row.status not in LIVE:
                return None
            after = ended(_to_placed(row), status, reason)
            keep_grants(connection, [after])
            return after

    def find_grant(self, grant: bytes) -> GrantRecord | None:
        """See ``Ledger.find_grant``."""
        with self._transaction() as connection:
            row = connection.execute(_GRANT, {"at_grant": grant}).one_or_none()
            return None if row is None else _to_placed(row)

    def lapse(self, now: float, limit: int = 1000) -> list[GrantRecord]:
        """See ``Ledger.lapse``."""
        with self._transaction() as connection:
            rows = connection.execute(_LAPSED, {"now": now, "most": max(limit, 0)})
            over = [ended(_to_placed(row), GrantStatus.LAPSED, "deadline") for row in rows]
            keep_grants(connection, over)
            return over

    def uploading(self, sessions: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """See ``Ledger.uploading``."""
        found: set[tuple[str, str]] = set()
        with self._transaction() as connection:
            for nodes in batched(dict.fromkeys(node for node, _ in sessions), CHUNK):
                found.update((row.node, row.session) for row in connection.execute(_UPLOADING, {"nodes": list(nodes)}))
        return found.intersection(sessions)

    def shorten(self, node: str, session: str, lease_until: float, now: float) -> list[GrantRecord]:
        """See ``Ledger.shorten``."""
        del now
        return self._of_session(node, session, lambda grant: shortened(grant, lease_until))

    def restore(self, node: str, session: str, lease_until: float, now: float) -> list[GrantRecord]:
        """See ``Ledger.restore``."""
        return self._of_session(node, session, lambda grant: restored(grant, lease_until, now))

    def _of_session(self, node: str, session: str, change: Callable[[GrantRecord], GrantRecord]) -> list[GrantRecord]:
        with self._transaction() as connection:
            rows = connection.execute(_SESSION_LOCKED, {"at_node": node, "at_session": session})
            before = [_to_placed(row) for row in rows]
            after = [change(grant) for grant in before]
            keep_grants(connection, [new for old, new in zip(before, after, strict=True) if new != old])
            return after


def _known(connection: Connection, grants: Sequence[bytes]) -> dict[bytes, GrantRecord]:
    """Grants of these ids that were made before: the proposals are repeated ones."""
    found: dict[bytes, GrantRecord] = {}
    for part in batched(grants, CHUNK):
        rows = connection.execute(_GRANTS, {"grants": list(part)})
        found.update((grant.grant, grant) for grant in map(_to_placed, rows))
    return found


def _keep_made(
    connection: Connection,
    accounts: dict[str, Account],
    slots: dict[ObjectRef, Slot],
    made: Sequence[GrantRecord],
) -> None:
    """Write the granted objects, their grants and the channels' accounts."""
    touched = [slots[grant.ref] for grant in made]
    keep_objects(connection, [slot for slot in touched if slot.id is not None])
    new = [slot for slot in touched if slot.id is None]
    if new:
        ids: dict[tuple[int, Key], int] = {}
        # In the order of the proposals, whatever their channels: rows are looked after in the order of their ids.
        for row in connection.execute(
            _NEW_OBJECTS, [new_object(slot, accounts[slot.record.ref.channel].id) for slot in new]
        ):
            ids[row.channel_id, (bytes(row.lock), bytes(row.stream), row.number)] = row.id
        for slot in new:
            slot.id = ids[accounts[slot.record.ref.channel].id, key_of(slot.record.ref)]
    connection.execute(_NEW_GRANTS, [_new_grant(grant, slots[grant.ref].id) for grant in made])
    for of in accounts.values():
        keep_account(connection, of)


def _new_grant(grant: GrantRecord, object_id: int | None) -> dict[str, Any]:
    if object_id is None:
        raise Internal("a granted object has no row")
    return {
        "grant": grant.grant,
        "object_id": object_id,
        "node": grant.node,
        "session": grant.session,
        "status": grant.status.value,
        "length": grant.length,
        "digest": grant.digest,
        "lease_until": grant.lease_until,
        "put_until": grant.put_until,
        "granted_at": grant.granted_at,
        "accepted_at": grant.accepted_at,
        "sent": grant.sent,
        "sent_at": grant.sent_at,
        "reason": grant.reason,
        "transfer": grant.transfer,
    }


def _to_placed(row: sa.Row[Any]) -> GrantRecord:
    return to_grant(row, ObjectRef(row.channel, bytes(row.lock), bytes(row.stream), row.number))
