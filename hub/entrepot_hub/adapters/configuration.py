"""Configuration files of other programs: YAML, TOML, JSON or ``.env``, as plain values.

Such a file may hold keys and may come from anywhere. So it is small, is only read (YAML's tags make nothing), names
nothing twice, cannot grow by aliases, and no error quotes it: an error tells the line.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Final

import yaml

from entrepot.core.errors import InvalidInput

#: The longest file in bytes.
MAX_CONFIGURATION: Final = 256 << 10

_MAX_VALUES: Final = 20_000
_MAX_DEPTH: Final = 40

_BLANK = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\r?\n|\Z)")
_NAME = re.compile(r"[ \t]*(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.]*)[ \t]*=[ \t]*")
_SINGLE = re.compile(r"'([^']*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_BARE = re.compile(r"[^\n]*")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED: Final = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$"}


def read_configuration(data: bytes, name: str) -> dict[str, object]:
    """The values of a file that is called ``name``: the end of the name tells what it is written in.

    Raises ``InvalidInput(invalid-setting)``, which shows nothing of the file.
    """
    read = _reader(name)
    if len(data) > MAX_CONFIGURATION:
        raise _wrong(name, f"is longer than {MAX_CONFIGURATION >> 10} KiB")
    reason = "is not UTF-8"
    values: object = None
    try:
        values = read(data.decode("utf-8-sig"))
    except _BadLine as error:
        reason = str(error)
    except yaml.MarkedYAMLError as error:
        reason = "is no YAML" + (f", from line {error.problem_mark.line + 1}" if error.problem_mark else "")
    except UnicodeDecodeError:
        pass
    except json.JSONDecodeError as error:
        reason = f"is no JSON, from line {error.lineno}"
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError):
        # A scalar that is not what its tag says ("!!int", "!!bool maybe") comes out of the library as any of these.
        reason = "is not well formed"
    else:
        if isinstance(values, dict) and all(isinstance(key, str) for key in values):
            return values
        reason = "holds no fields"
    raise _wrong(name, reason)


def _reader(name: str) -> Callable[[str], object]:
    path = PurePath(name)
    if path.name == ".env" or path.name.startswith(".env.") or path.suffix in {".env", ".dotenv"}:
        return _read_variables
    readers: dict[str, Callable[[str], object]] = {
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
        ".toml": tomllib.loads,
        ".json": _read_json,
    }
    reader = readers.get(path.suffix)
    if reader is None:
        raise _wrong(name, "is of no known kind", "Its name ends with .yaml, .yml, .toml, .json or .env.")
    return reader


class _BadLine(ValueError):
    """What is wrong, in words that quote nothing."""


# --- YAML and JSON ------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Stops where brackets are nested deeper than is taken: for each of them the library looks at all before it."""

    def fetch_flow_collection_start(self, TokenClass: type[yaml.Token]) -> None:  # noqa: N803  # as the library has it
        if self.flow_level > _MAX_DEPTH:
            raise _BadLine(f"is nested too deeply, line {self.line + 1}")
        super().fetch_flow_collection_start(TokenClass)


def _read_yaml(text: str) -> object:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _weigh(node, 0, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _weigh(node: yaml.Node, depth: int, known: dict[int, int | None]) -> int:
    """How many values a node amounts to, its aliases written out. Raises :class:`_BadLine` if that is too many, if it
    holds itself, or if a name stands in it twice."""
    line = f", line {node.start_mark.line + 1}"
    if depth > _MAX_DEPTH:
        raise _BadLine("is nested too deeply" + line)
    if id(node) in known:
        weight = known[id(node)]
        if weight is None:
            raise _BadLine("has a value that holds itself" + line)
        return weight
    known[id(node)] = None
    weight = 1
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) != len(names):
            raise _BadLine("names a field twice" + line)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    else:
        parts = []
    for part in parts:
        weight += _weigh(part, depth + 1, known)
        if weight > _MAX_VALUES:
            raise _BadLine("has too many values" + line)
    known[id(node)] = weight
    return weight


def _read_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _BadLine("names a field twice")
    return fields


# --- variables ----------------------------------------------------------------------------------------------------


def _read_variables(text: str) -> Mapping[str, object]:
    """Lines ``NAME=value``, as shells, Docker and systemd share them: ``export`` and comments may stand there; a value
    in quotes may have several lines; in double quotes a backslash escapes; a value that begins with ``{`` is JSON and
    taken to the end of its line."""
    values: dict[str, object] = {}
    place = 0
    while place < len(text):
        if blank := _BLANK.match(text, place):
            place = blank.end()
            continue
        line = text.count("\n", 0, place) + 1
        name = _NAME.match(text, place)
        if name is None:
            raise _BadLine(f"has no NAME=value in line {line}")
        value, place = _value(text, name.end(), line)
        if name[1] in values:
            raise _BadLine(f"names a variable twice, in line {line}")
        values[name[1]] = value
    return values


def _value(text: str, place: int, line: int) -> tuple[str, int]:
    """The value that begins at ``place``, and where the next line does."""
    start = text[place : place + 1]
    if start in {"'", '"'}:
        quoted = (_SINGLE if start == "'" else _DOUBLE).match(text, place)
        end = quoted and _BLANK.match(text, quoted.end())
        if not quoted or not end:
            raise _BadLine(f"has quotes that do not fit in line {line}")
        value = quoted[1] if start == "'" else _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[0]), quoted[1])
        return value, end.end()
    bare = _BARE.match(text, place)
    assert bare is not None
    value = bare[0] if start == "{" else re.split(r"(?:^|[ \t])#", bare[0], maxsplit=1)[0]
    return value.strip(), bare.end() + 1


def _wrong(name: str, reason: str, hint: str | None = None) -> InvalidInput:
    return InvalidInput(f"{PurePath(name).name} {reason}", kind="invalid-setting", hint=hint)
