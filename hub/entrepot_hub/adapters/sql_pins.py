"""The SQL ledger's pins."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from entrepot.core.errors import NotFound
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.ledger_rows import Account, LedgerRows, account
from entrepot_hub.adapters.registry_rows import write_audit
from entrepot_hub.core.ledger import ObjectStatus
from entrepot_hub.core.pins import Pin, PinKind, Pinned, check_room

_p, _o, _s = t.pins.c, t.objects.c, t.streams.c
_KIND: Final = _p["class"]
_HERE: Final = sa.and_(_p.channel_id == sa.bindparam("channel"), _p.stream == sa.bindparam("at_stream"))
_PINS: Final = sa.select(_p.stream, _KIND.label("kind"), _p.actor, _p.at).where(
    _p.channel_id == sa.bindparam("channel")
)
_ALL: Final = _PINS.order_by(_p.at, _p.stream)
_ONE: Final = _PINS.where(_p.stream == sa.bindparam("at_stream"))
_SET_KIND: Final = sa.update(t.pins).where(_HERE).values({_KIND: sa.bindparam("new_kind")})
_REMOVE: Final = sa.delete(t.pins).where(_HERE)
_LENGTH: Final = sa.select(_s.length).where(
    _s.channel_id == sa.bindparam("channel"), _s.stream == sa.bindparam("at_stream")
)
_STORED: Final = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(_o.size), 0)).where(
    _o.channel_id == sa.bindparam("channel"),
    _o.stream == sa.bindparam("at_stream"),
    _o.status.in_([ObjectStatus.READY.value, ObjectStatus.EVICTING.value]),
)


class SqlPins(LedgerRows):
    """What stays in the bucket."""

    def pin(self, channel: str, pin: Pin, reserve: int) -> Pinned:
        """See ``Ledger.pin``."""
        with self._transaction() as connection:
            of = account(connection, channel, "own")
            place = {"channel": of.id, "at_stream": pin.stream}
            row = connection.execute(_ONE, place).one_or_none()
            if row is not None:
                connection.execute(_SET_KIND, {**place, "new_kind": pin.kind.value})
                if row.kind != pin.kind.value:
                    _note(connection, channel, pin)
                return _pinned(connection, of, Pin(pin.stream, pin.kind, row.actor, row.at))
            new = _pinned(connection, of, pin)
            if new.length is None and not new.objects:
                raise NotFound("the channel knows no such stream", kind="no-such-stream", stream=pin.stream.hex())
            check_room(of.quota, _all(connection, of), new, reserve)
            values: dict[str, Any] = {
                "channel_id": of.id, "stream": pin.stream, "class": pin.kind.value, "actor": pin.actor, "at": pin.at
            }  # fmt: skip
            connection.execute(sa.insert(t.pins), values)
            _note(connection, channel, pin)
            return new

    def unpin(self, channel: str, stream: bytes, actor: str, now: float) -> bool:
        """See ``Ledger.unpin``."""
        with self._transaction() as connection:
            of = account(connection, channel)
            was = bool(connection.execute(_REMOVE, {"channel": of.id, "at_stream": stream}).rowcount)
            if was:
                write_audit(connection, now, actor, "channel.unpin", channel, {"stream": stream.hex()})
            return was

    def pins(self, channel: str) -> list[Pinned]:
        """See ``Ledger.pins``."""
        with self._transaction() as connection:
            return _all(connection, account(connection, channel))


def _all(connection: Connection, of: Account) -> list[Pinned]:
    rows = connection.execute(_ALL, {"channel": of.id}).all()
    return [_pinned(connection, of, _pin(row)) for row in rows]


def _pinned(connection: Connection, of: Account, pin: Pin) -> Pinned:
    place = {"channel": of.id, "at_stream": pin.stream}
    count, stored = connection.execute(_STORED, place).one()
    return Pinned(pin, connection.execute(_LENGTH, place).scalar_one_or_none(), int(count), int(stored))


def _note(connection: Connection, channel: str, pin: Pin) -> None:
    detail = {"stream": pin.stream.hex(), "class": pin.kind.value}
    write_audit(connection, pin.at, pin.actor, "channel.pin", channel, detail)


def _pin(row: Any) -> Pin:
    return Pin(bytes(row.stream), PinKind(row.kind), row.actor, row.at)
