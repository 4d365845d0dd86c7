"""The schema lock."""

from __future__ import annotations

import json

import pytest

from entrepot.core.errors import InvalidInput
from entrepot.core.lock import SchemaLock, is_channel

KIB = 1024


@pytest.mark.parametrize("miniblock", [16 * KIB, 1 << 20, 64 << 20])
@pytest.mark.parametrize("per_object", [0, 1, 4, 1 << 20])
def test_lock_round_trip(miniblock, per_object) -> None:
    """A lock survives its document, as text and as bytes, and keeps its id."""
    lock = SchemaLock("lab7", miniblock=miniblock, object=miniblock * per_object)
    for document in (lock.canonical(), lock.canonical().decode()):
        again = SchemaLock.parse(document)
        assert again == lock
        assert (again.id, again.hex) == (lock.id, lock.id.hex())
        assert len(again.id) == 8
    assert 16 * KIB << lock.level == miniblock
    levels = lock.object_levels
    assert (0 if levels is None else 1 << levels) == per_object


def test_every_parameter_changes_the_id() -> None:
    """Two locks that differ in anything have different ids."""
    locks = [SchemaLock("a"), SchemaLock("b"), SchemaLock("a", object=0), SchemaLock("a", miniblock=1 << 19)]
    assert len({lock.id for lock in locks}) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"channel": ""},
        {"channel": "Lab"},
        {"channel": "a-b"},
        {"channel": "a" * 33},
        {"channel": "a\n"},
        {"channel": 7},
        {"codec": "gzip"},
        {"codec": "zstd2"},
        {"codec": None},
        {"format": 2},
        {"format": True},
        {"format": "1"},
        {"miniblock": 8 * KIB},
        {"miniblock": 48 * KIB},
        {"miniblock": 128 << 20},
        {"miniblock": 1048576.0},
        {"miniblock": -(1 << 20)},
        {"object": 1},
        {"object": -1},
        {"object": False},
        {"object": 512 * KIB},
        {"object": 3 << 20},
        {"object": (1 << 20) << 21},
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(change) -> None:
    """Unknown codecs and formats, crooked sizes and wrong types are refused, built or parsed."""
    fields = {
        "channel": "demo",
        "codec": "none",
        "format": 1,
        "miniblock": 1 << 20,
        "object": 4 << 20,
        **change,
    }
    with pytest.raises(InvalidInput) as caught:
        SchemaLock(**fields)
    assert caught.value.kind == "invalid-lock"
    with pytest.raises(InvalidInput) as caught:
        SchemaLock.parse(json.dumps(fields, separators=(",", ":"), sort_keys=True))
    assert caught.value.kind == "invalid-lock"


CANONICAL = SchemaLock("demo").canonical().decode()


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{}",
        "[]",
        "null",
        CANONICAL + " ",
        CANONICAL.replace(",", ", "),
        CANONICAL.replace('"demo"', '"\\u0064emo"'),
        CANONICAL.replace("{", '{"channel":"demo",'),
        CANONICAL.replace("}", ',"zebra":1}'),
        CANONICAL.replace('"format":1,', ""),
        CANONICAL.replace("1048576", "1048576.0"),
        CANONICAL.replace("1048576", "1" + "0" * 30),
        '{"object":4194304,' + CANONICAL[1:].replace(',"object":4194304', ""),
        CANONICAL.replace("demo", "d" * 2000),
        CANONICAL.replace("demo", "\ud800"),
    ],
)
def test_other_spellings_are_refused(document) -> None:
    """Only the canonical bytes are a lock's document, so its id is the hash of what was sent."""
    with pytest.raises(InvalidInput) as caught:
        SchemaLock.parse(document)
    assert caught.value.kind == "invalid-lock"


def test_documents_that_are_not_text_are_refused() -> None:
    """Broken UTF-8 is refused like any other nonsense."""
    with pytest.raises(InvalidInput):
        SchemaLock.parse(b'{"channel":"\xff"}')


def test_channel_names() -> None:
    """A channel is 1 to 32 of a-z and 0-9."""
    assert all(map(is_channel, ("a", "0", "lab7", "z" * 32)))
    assert not any(map(is_channel, ("", "A", "a b", "é", "\u0663", "z" * 33, "a\n")))
