"""Object keys."""

from __future__ import annotations

import pytest

from entrepot.core.errors import InvalidInput
from entrepot.core.identifiers import StreamId, StreamKind
from entrepot.core.keys import INDEX_NUMBER, check_prefix, object_key, owner_mark_key, parse_object_key

STREAM = StreamId.parse("ffbccc67723a661a8341a2a5c39e27523a23247db89721401db43e5e6268229b")
LOCK = bytes.fromhex("4ec2aebd7769b2f6")


def test_keys_are_as_the_design_says() -> None:
    """Prefix, lock, stream and number in eight digits; no leading slash where there is no prefix."""
    tail = f"4ec2aebd7769b2f6/{STREAM}/0000001a"
    assert object_key("", LOCK, STREAM, 26) == tail
    assert object_key("team/cache", LOCK, STREAM, 26) == f"team/cache/{tail}"
    assert object_key("", LOCK, STREAM, 0xFFFFFFFE).endswith("/fffffffe")
    assert (owner_mark_key(""), owner_mark_key("team")) == (".entrepot", "team/.entrepot")


@pytest.mark.parametrize("prefix", ["", "p", "team/cache", "a.b/~c/D_9-x"])
def test_key_round_trip(prefix) -> None:
    """A key read under its prefix gives what it was made from."""
    assert parse_object_key(prefix, object_key(prefix, LOCK, STREAM, 77)) == (LOCK, STREAM, 77)


@pytest.mark.parametrize("prefix", ["/", "/a", "a/", "a//b", ".", "a/../b", "a b", "é", "a\n", "%41", "x" * 513])
def test_unsafe_prefixes_are_refused(prefix) -> None:
    """A prefix that would need encoding or could be read as a path is refused everywhere."""
    for call in (check_prefix, owner_mark_key, lambda p: object_key(p, LOCK, STREAM, 0)):
        with pytest.raises(InvalidInput) as caught:
            call(prefix)
        assert caught.value.kind == "invalid-key"


@pytest.mark.parametrize(
    ("number", "kind"),
    [(-1, "invalid-key"), (2**32, "invalid-key"), (INDEX_NUMBER, "unsupported")],
)
def test_numbers_that_name_no_data_are_refused(number, kind) -> None:
    """Numbers have 32 bits, and the last one is the index's."""
    with pytest.raises(InvalidInput) as caught:
        object_key("", LOCK, STREAM, number)
    assert caught.value.kind == kind


def test_streams_without_objects_have_no_keys() -> None:
    """Feeds and results are refused as objects, to make a key and to read one."""
    for kind in (StreamKind.FEED, StreamKind.RESULT):
        stream = StreamId(bytes([kind]) + bytes(31))
        for call in (
            lambda s=stream: object_key("", LOCK, s, 0),
            lambda s=stream: parse_object_key("", f"{LOCK.hex()}/{s}/00000000"),
        ):
            with pytest.raises(InvalidInput) as caught:
                call()
            assert caught.value.kind == "unsupported"
    with pytest.raises(InvalidInput):
        object_key("", LOCK[:7], STREAM, 0)


def test_foreign_keys_are_refused() -> None:
    """What is not exactly a key under this prefix is not taken for one."""
    good = object_key("p", LOCK, STREAM, 1)
    bad = [
        *(
            "",
            "p",
            "p/.entrepot",
            good[2:],
            "q" + good[1:],
            "/" + good,
            good + "/",
            good + "0",
            good[:-1],
            good + "\n",
        ),
        *(good.upper(), good.replace("ffbc", "00bc"), good.replace("/ff", "//ff"), "p/" + good),
    ]
    for key in bad:
        with pytest.raises(InvalidInput) as caught:
            parse_object_key("p", key)
        assert caught.value.kind == "invalid-key", key
    with pytest.raises(InvalidInput) as caught:
        parse_object_key("p", good[:-8] + "ffffffff")
    assert caught.value.kind == "unsupported"
