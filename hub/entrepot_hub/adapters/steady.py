"""Statements that stay the same are compiled once and run by SQLite's driver directly.

SQLAlchemy's way to a row costs ten times what SQLite's does, which is what limits a hub on SQLite. A statement that is
marked :func:`steady` is compiled once for each shape of its values, and then given to :mod:`sqlite3` as text; on
PostgreSQL, where the way to the server costs more than that, it goes through SQLAlchemy like any other.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection

from entrepot.core.errors import Internal

type Values = Mapping[str, Any]
type _Process = Callable[[Any], Any] | None

_DIALECT: Final = sqlite.dialect()
_STEADY: Final[dict[Any, _Plan]] = {}
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
    """A transaction's connection to SQLite, with the short way for steady statements; all else is the connection's."""

    __slots__ = ("_connection", "_raw")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._raw = cast(sqlite3.Connection, connection.connection.driver_connection)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: Any, values: Values | Sequence[Values] | None = None) -> Any:
        """See ``Connection.execute``."""
        plan = _STEADY.get(statement)
        found = None if plan is None else plan.run(self._raw, {} if values is None else values)
        return self._connection.execute(statement, values) if found is None else found


class _Plan:
    """How a steady statement is run."""

    __slots__ = ("_lists", "_made", "_statement")

    def __init__(self, statement: Any) -> None:
        self._statement = statement
        self._made: dict[tuple[object, ...], _Compiled] = {}
        self._lists: tuple[str, ...] | None = None

    def run(self, raw: sqlite3.Connection, values: Values | Sequence[Values]) -> Rows | None:
        """Run it; None, and nothing was done, where that is left to SQLAlchemy."""
        many = not isinstance(values, dict)
        first = cast(Values, (values[0] if values else {}) if many else values)  # type: ignore[index]
        made = self._compiled(first)
        if made is None:
            return None
        return made.many(raw, cast(Sequence[Values], values)) if many else made.one(raw, first)

    def _compiled(self, values: Values) -> _Compiled | None:
        if self._lists is None:
            self._lists = _lists_of(self._statement)
        shape: tuple[object, ...] = ()
        if isinstance(self._statement, sa.Insert):
            shape = tuple(values)
        elif self._lists:
            shape = tuple(len(values[name]) for name in self._lists)
            if not all(0 < cast(int, length) <= _FEW for length in shape):
                return None
        made = self._made.get(shape)
        if made is None:
            made = self._made[shape] = _Compiled(self._statement, values)
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
        self._plain: tuple[str, ...] | None = None
        if all(given and index is None and process is None for _, index, given, _, process in self._places):
            self._plain = tuple(name for name, *_ in self._places)
        self._columns = [(column.name or column.key, _from_database(column.type)) for column in _columns(statement)]
        names = [str(name) for name, _ in self._columns]
        self._made: Callable[[Any], Any] = cast(Any, namedtuple("Row", names, rename=True))._make
        self._results = [(place, process) for place, (_, process) in enumerate(self._columns) if process is not None]

    def one(self, raw: sqlite3.Connection, values: Values) -> Rows:
        """Run it once."""
        cursor = raw.execute(self._text, self._bound(values))
        if not self._columns:
            return Rows((), cursor.rowcount)
        return Rows(self._rows(cursor), -1)

    def many(self, raw: sqlite3.Connection, values: Sequence[Values]) -> Rows:
        """Run it for each of these."""
        if not self._columns:
            return Rows((), raw.executemany(self._text, map(self._bound, values)).rowcount)
        return Rows([row for each in values for row in self._rows(raw.execute(self._text, self._bound(each)))], -1)

    def _bound(self, values: Values) -> list[Any]:
        if self._plain is not None:
            return [values[name] for name in self._plain]
        bound = []
        for name, index, given, value, process in self._places:
            if given:
                value = values[name] if index is None else values[name][index]  # noqa: PLW2901
            bound.append(value if process is None else process(value))
        return bound

    def _rows(self, cursor: sqlite3.Cursor) -> list[Any]:
        found = cursor.fetchall()
        if found and len(found[0]) != len(self._columns):
            raise Internal("a statement gave other columns than it names")
        if self._results:
            for number, row in enumerate(found):
                values = list(row)
                for place, process in self._results:
                    values[place] = process(values[place])
                found[number] = values
        return [self._made(row) for row in found]


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
