"""The messages of the exchange."""

from __future__ import annotations

import contextlib
import inspect
import json
from pathlib import Path

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core import messages
from entrepot.core.errors import EntrepotError, InvalidInput, NotFound
from entrepot.core.messages import MAX_MESSAGE, Message, ObjectState, Reason, Signed, State, Want, decode, encode

VECTORS = Path(__file__).parents[2] / "data" / "messages.json"
KINDS: dict[str, type[Message]] = {
    name: kind
    for name, kind in inspect.getmembers(messages, inspect.isclass)
    if issubclass(kind, Message) and kind is not Message
}
GET = Signed(method="GET", url="https://b.example/k?sig=1", headers={"If-Match": '"e"'}, expires=600_000)
REASON = messages.reason_of(NotFound("nobody", kind="no-holder", hint="wait", last_seen=12.5))
LOCK, STREAM, GRANT, OPENING = b"\x01" * 8, b"\xff" + b"\x02" * 31, b"\x03" * 16, b"\x04" * 40
READY = ObjectState(number=0, state="ready", length=100, etag="e", get=GET)
SEEKING = ObjectState(number=2, state="seeking", reason=REASON)
EXAMPLES: dict[str, Message] = {
    "Want": Want(lock=LOCK, stream=STREAM, session="0" * 16, ranges=((0, 7), (9, 9)), window=8, deadline=60_000),
    "WantReply": messages.WantReply(
        opening=OPENING, objects=(READY, SEEKING), ready=((0, 0),), uploading=((1, 1),), again_in=1000, reason=REASON
    ),
    "Seek": messages.Seek(lock=LOCK, stream=STREAM, hub="a" * 16, within=1000, sample=77),
    "Offer": messages.Offer(lock=LOCK, stream=STREAM, session="1" * 16, opening=OPENING, ranges=((0, 9),), slots=4),
    "Grant": messages.Grant(lock=LOCK, stream=STREAM, number=3, grant=GRANT, opening=OPENING, lease=10_000),
    "Accept": messages.Accept(lock=LOCK, grant=GRANT, session="1" * 16, header=b"head", digest=b"\x05" * 32),
    "AcceptReply": messages.AcceptReply(put=Signed(method="PUT", url="https://b/k", expires=900_000), lease=10_000),
    "Progress": messages.Progress(lock=LOCK, grant=GRANT, sent=4096),
    "Done": messages.Done(lock=LOCK, grant=GRANT, error=REASON),
    "State": State(lock=LOCK, stream=STREAM, objects=(READY,), opening=OPENING),
    "Got": messages.Got(lock=LOCK, stream=STREAM, numbers=(0, 1)),
    "Cancel": messages.Cancel(lock=LOCK, stream=STREAM),
    "Missing": messages.Missing(lock=LOCK, stream=STREAM, number=5, etag="e"),
    "Bad": messages.Bad(lock=LOCK, stream=STREAM, number=5, etag="e", miniblock=21),
    "Added": messages.Added(lock=LOCK, session="1" * 16, streams=((STREAM, OPENING),)),
    "Open": messages.Open(lock=LOCK, session="1" * 16, cursor=12),
    "OpenReply": messages.OpenReply(streams=(STREAM,), cursor=13),
    "Ack": messages.Ack(error=None),
    "Many": messages.Many(
        parts=(messages.Said(verb="got", payload=b"one"), messages.Said(verb="want", payload=b"two"))
    ),
    "ManyReply": messages.ManyReply(answers=(b"answer", None)),
}


def test_every_message_has_an_example() -> None:
    """The examples below cover every message there is."""
    assert set(EXAMPLES) == set(KINDS)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_messages_are_what_they_always_were(name: str) -> None:
    """The canonical bytes of each example are pinned: another encoding is another protocol."""
    assert encode(EXAMPLES[name]).hex() == json.loads(VECTORS.read_text())[name]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_messages_come_back_as_they_were(name: str) -> None:
    """Decoding gives the message again, and an independent msgpack reader sees a map with sorted keys."""
    data = encode(EXAMPLES[name])
    assert decode(KINDS[name], data) == EXAMPLES[name]
    keys = list(msgpack.unpackb(data))
    assert keys == sorted(keys)
    assert "v" in keys


def test_a_transfer_is_named_or_left_out() -> None:
    """A message without a transfer is the bytes that it was before there were any; one with it comes back with it."""
    want = EXAMPLES["Want"]
    assert isinstance(want, Want)
    named = msgspec.structs.replace(want, transfer=b"transfer")
    assert "transfer" not in msgpack.unpackb(encode(want))
    assert decode(Want, encode(named)) == named
    assert (messages.transfer_of(want), messages.transfer_of(named)) == (None, b"transfer")


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_unknown_field_is_refused(name: str) -> None:
    """A field that this version does not know is an error, not silence."""
    fields = msgpack.unpackb(encode(EXAMPLES[name]))
    with pytest.raises(InvalidInput) as caught:
        decode(KINDS[name], msgpack.packb(fields | {"extra": 1}))
    assert caught.value.kind == "invalid-message"


def test_another_version_is_told_apart_from_rubbish() -> None:
    """A message of a newer version says so, whatever else it holds."""
    with pytest.raises(InvalidInput) as caught:
        decode(Want, msgpack.packb({"v": 2, "something": "new"}))
    assert caught.value.kind == "unsupported"
    assert caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"lock": b"short"},
        {"stream": b"\xff" * 33},
        {"window": 0},
        {"window": 65},
        {"session": "G" * 16},
        {"ranges": [[0, 1, 2]]},
        {"ranges": [[0, 1]] * 65},
        {"ranges": [[-1, 2]]},
        {"ranges": [[0, 0xFFFFFFFF]]},
        {"deadline": -1},
        {"deadline": 1.5},
        {"keep": 1},
        {"lock": "12345678"},
    ],
    ids=repr,
)
def test_values_out_of_bounds_are_refused(change: dict[str, object]) -> None:
    """Every field has a type and bounds that hold."""
    fields = msgpack.unpackb(encode(EXAMPLES["Want"]))
    with pytest.raises(InvalidInput):
        decode(Want, msgpack.packb(fields | change))


@pytest.mark.parametrize(
    "parts",
    [[], [{"verb": "got", "payload": b""}] * 257, [{"verb": "GOT", "payload": b""}], [{"verb": "got"}], [b"got"]],
    ids=["none", "too many", "no verb", "no payload", "no part"],
)
def test_several_messages_at_once_have_bounds(parts: list[object]) -> None:
    """A message of several holds one to 256 parts, each of them a verb and bytes."""
    with pytest.raises(InvalidInput):
        decode(messages.Many, msgpack.packb({"parts": parts, "v": 1}))


def test_a_message_has_a_largest_size() -> None:
    """Neither side takes or makes a message that the bus would not carry."""
    with pytest.raises(InvalidInput):
        decode(Want, b"\x80" * (MAX_MESSAGE + 1))
    state = ObjectState(number=0, state="ready", get=Signed(method="GET", url="u" * 4096, expires=1))
    with pytest.raises(InvalidInput):
        encode(State(lock=LOCK, stream=STREAM, objects=(state,) * 32))


@given(st.binary(max_size=300), st.sampled_from(sorted(KINDS)))
def test_no_bytes_crash_a_decoder(data: bytes, name: str) -> None:
    """Whatever arrives, a decoder gives a message or our error."""
    with contextlib.suppress(InvalidInput):
        decode(KINDS[name], data)


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_no_damaged_message_crashes_a_decoder(name: str, data: st.DataObject) -> None:
    """A message with one byte changed decodes to a message or to our error."""
    good = bytearray(encode(EXAMPLES[name]))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidInput):
        decode(KINDS[name], bytes(good))


def test_an_error_travels_whole() -> None:
    """Kind, sentence, hint and data of an error arrive as they left; an unknown kind can be retried."""
    error = REASON.error()
    assert isinstance(error, NotFound)
    assert (error.kind, error.message, error.hint, error.data["last_seen"]) == ("no-holder", "nobody", "wait", 12.5)
    newer: EntrepotError = Reason(kind="from-the-future", message="m").error()
    assert newer.kind == "retry-later"
