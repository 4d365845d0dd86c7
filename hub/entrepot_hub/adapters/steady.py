"""Statements that stay the same are compiled once and run by SQLite's driver directly.

SQLAlchemy's way to a row costs ten times what SQLite's does, which is what limits a hub on SQLite. A statement that is
marked :func:`steady` is compiled once for each shape of its values, and then given to :mod:`sqlite3` as text; on
PostgreSQL, where the way to the server costs more than that, it goes through SQLAlchemy like any other.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection

from entrepot.core.errors import Internal

type Values = Mapping[str, Any]
type _Process = Callable[[Any], Any] | None

_DIALECT: Final = sqlite.dialect()
_STEADY: Final[dict[Any, _Plan]] = {}
_NO_VALUES: Final[dict[str, Any]] = {}
_FEW: Final = 16  # lengths of lists that are compiled for; longer ones go through SQLAlchemy


def steady[S: sa.Executable](statement: S) -> S:
    """The statement itself, marked as one that its module keeps: never one that is made for a call."""
    _STEADY[statement] = _Plan(statement)
    return statement


class Rows:
    """What a steady statement gave, read like SQLAlchemy's result."""

    __slots__ = ("_rows", "rowcount")

    def __init__(self, rows: Sequence[Any], rowcount: int) -> None:
        self._rows = rows
        self.rowcount = rowcount

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def all(self) -> Sequence[Any]:
        """All rows."""
        return self._rows

    def one_or_none(self) -> Any:
        """The only row, or None without one. Internal if there are several."""
        if len(self._rows) > 1:
            raise Internal("a statement gave several rows, where one was expected")
        return self._rows[0] if self._rows else None

    def one(self) -> Any:
        """The only row. Internal if there is none, or several."""
        row = self.one_or_none()
        if row is None:
            raise Internal("a statement gave no row, where one was expected")
        return row

    def scalar_one(self) -> Any:
        """The first value of the only row."""
        return self.one()[0]

    def scalar_one_or_none(self) -> Any:
        """The first value of the only row, or None without one."""
        row = self.one_or_none()
        return None if row is None else row[0]

    def scalars(self) -> Iterator[Any]:
        """The first value of each row."""
        return (row[0] for row in self._rows)


class Lane:
    """A transaction's connection to SQLite, with the short way for steady statements; all else is the connection's.

    ``known`` is what was read or written in this transaction, by name, and need not be read again: nothing but what
    goes through here changes it. None where that cannot be said, because SQLAlchemy's connection was given away.
    """

    __slots__ = ("_connection", "known", "raw")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.raw = cast(sqlite3.Connection, connection.connection.driver_connection)
        self.known: dict[str, Any] | None = {}

    def forget(self) -> None:
        """Something else than steady statements may have changed what is known, or undone it."""
        if self.known:
            self.known = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: Any, values: Values | Sequence[Values] | None = None) -> Any:
        """See ``Connection.execute``."""
        plan = _STEADY.get(statement)
        if plan is not None:
            found = plan.run(self.raw, _NO_VALUES if values is None else values)
            if found is not None:
                return found
        else:
            self.forget()
        return self._connection.execute(statement, values)


class _Plan:
    """How a steady statement is run."""

    __slots__ = ("_insert", "_lists", "_made", "_only", "_statement")

    def __init__(self, statement: Any) -> None:
        self._statement = statement
        self._insert = isinstance(statement, sa.Insert)
        self._made: dict[tuple[object, ...], _Compiled] = {}
        self._only: _Compiled | None = None  # of a statement that has one shape
        self._lists: tuple[str, ...] | None = None

    def run(self, raw: sqlite3.Connection, values: Values | Sequence[Values]) -> Rows | None:
        """Run it; None, and nothing was done, where that is left to SQLAlchemy."""
        if isinstance(values, dict):
            made = self._only or self._compiled(values)
            return None if made is None else made.one(raw, values)
        several = cast(Sequence[Values], values)
        made = self._only or self._compiled(several[0] if several else _NO_VALUES)
        return None if made is None else made.many(raw, several)

    def _compiled(self, values: Values) -> _Compiled | None:
        if self._lists is None:
            self._lists = _lists_of(self._statement)
        shape: tuple[object, ...] = ()
        if self._insert:
            shape = tuple(values)
        elif self._lists:
            lengths = [len(values[name]) for name in self._lists]
            if min(lengths) == 0 or max(lengths) > _FEW:
                return None
            shape = tuple(lengths)
        made = self._made.get(shape)
        if made is None:
            made = self._made[shape] = _Compiled(self._statement, values)
        if not shape and not self._insert:
            self._only = made
        return made


def _lists_of(statement: Any) -> tuple[str, ...]:
    """The names of its values that are lists."""
    binds = statement.compile(dialect=_DIALECT).binds
    return tuple(sorted({name for name, bind in binds.items() if bind.expanding}))


class _Compiled:
    """A statement's text for values of one shape."""

    __slots__ = ("_columns", "_made", "_places", "_plain", "_results", "_text")

    def __init__(self, statement: Any, values: Values) -> None:
        names = list(values) if isinstance(statement, sa.Insert) else None
        compiled = statement.compile(dialect=_DIALECT, column_keys=names)
        text = str(compiled)
        #: Of each "?": the value's name, its place in a list, whether it comes with the call, else what it is.
        self._places: list[tuple[str, int | None, bool, Any, _Process]] = []
        for name in compiled.positiontup or ():
            bind = compiled.binds[name]
            process = _to_database(bind.type)
            if bind.expanding:
                length = len(values.get(name) or ())
                text = text.replace(f"__[POSTCOMPILE_{name}]", ", ".join("?" * length))
                self._places += [(name, index, True, None, process) for index in range(length)]
            else:
                self._places.append((name, None, bind.required or bind.value is None, bind.value, process))
        self._text = text
        self._plain: Callable[[Values], Sequence[Any]] | None = None
        if all(given and index is None and process is None for _, index, given, _, process in self._places):
            self._plain = _getter([name for name, *_ in self._places])
        self._columns = [(column.name or column.key, _from_database(column.type)) for column in _columns(statement)]
        names = [str(name) for name, _ in self._columns]
        self._made: Callable[[Any], Any] = cast(Any, namedtuple("Row", names, rename=True))._make
        self._results = [(place, process) for place, (_, process) in enumerate(self._columns) if process is not None]

    def one(self, raw: sqlite3.Connection, values: Values) -> Rows:
        """Run it once."""
        plain = self._plain
        cursor = raw.execute(self._text, self._bound(values) if plain is None else plain(values))
        return Rows(self._rows(cursor), -1) if self._columns else Rows((), cursor.rowcount)

    def many(self, raw: sqlite3.Connection, values: Sequence[Values]) -> Rows:
        """Run it for each of these."""
        if not self._columns:
            if len(values) == 1:
                return self.one(raw, values[0])
            return Rows((), raw.executemany(self._text, map(self._bound, values)).rowcount)
        return Rows([row for each in values for row in self._rows(raw.execute(self._text, self._bound(each)))], -1)

    def _bound(self, values: Values) -> Sequence[Any]:
        if self._plain is not None:
            return self._plain(values)
        bound = []
        for name, index, given, value, process in self._places:
            if given:
                value = values[name] if index is None else values[name][index]  # noqa: PLW2901
            bound.append(value if process is None else process(value))
        return bound

    def _rows(self, cursor: sqlite3.Cursor) -> list[Any]:
        found = cursor.fetchall()
        if not found:
            return found
        if len(found[0]) != len(self._columns):
            raise Internal("a statement gave other columns than it names")
        if self._results:
            for number, row in enumerate(found):
                values = list(row)
                for place, process in self._results:
                    values[place] = process(values[place])
                found[number] = values
        return [self._made(row) for row in found]


def _getter(names: Sequence[str]) -> Callable[[Values], Sequence[Any]]:
    """What takes these out of a call's values, in their order."""
    if len(names) < 2:
        return lambda values: [values[name] for name in names]
    return itemgetter(*names)


def _columns(statement: Any) -> Sequence[Any]:
    """The columns that it gives."""
    return list(statement.exported_columns)


#: Types whose values SQLite's driver takes and gives as they are.
_PLAIN: Final = (sa.String, sa.Integer, sa.Float, sa.LargeBinary, sa.types.NullType)


def _to_database(kind: Any) -> _Process:
    if isinstance(kind, (*_PLAIN, sa.Boolean)):
        return None
    found: _Process = _json(kind).bind_processor(_DIALECT)
    return found


def _from_database(kind: Any) -> _Process:
    if isinstance(kind, _PLAIN):
        return None
    if isinstance(kind, sa.Boolean):
        return _truth
    found: _Process = _json(kind).result_processor(_DIALECT, None)
    return found


def _json(kind: Any) -> Any:
    if not isinstance(kind, sa.JSON):
        raise Internal(f"no steady statement can have a {kind!r}")
    return kind.dialect_impl(_DIALECT)


def _truth(value: Any) -> bool | None:
    return None if value is None else bool(value)
