"""``entrepot-hub channel pin``, ``unpin`` and ``pins`` as an admin uses them, without a running hub."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.web.test_cli import command, ready  # noqa: F401

from entrepot.core.identifiers import Opening
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.sql_ledger import SqlLedger

OPENING = Opening(5 << 30, bytes(32))
STREAM = OPENING.stream_id()


@pytest.fixture
def known(ready):  # noqa: F811
    """A hub with a channel that knows a stream of 5 GiB."""

    async def learn() -> None:
        async with Database(f"sqlite:///{ready.home / 'hub.db'}") as database:
            await database.call(SqlLedger(database).learn, "demo", STREAM.raw, OPENING)

    asyncio.run(learn())
    return ready


@pytest.mark.blocking
def test_a_pins_life(known):
    """Pinned by URI, listed, made an archive by id, shown in the usage, unpinned; each change is in the audit log."""
    uri = f"entrepot://demo@hub.example.org/{STREAM.hex}/big.nwb"
    made = known.json("channel", "pin", "demo", uri)
    assert (made["stream"], made["kind"], made["length"], made["stored"]) == (STREAM.hex, "pin", 5 << 30, 0)
    assert STREAM.hex in known("channel", "pin", "demo", STREAM.hex, "--archive").stdout
    listed = known.json("channel", "pins", "demo")
    assert [(p["stream"], p["kind"], p["actor"]) for p in listed["pins"]] == [(STREAM.hex, "archive", "admin")]
    assert (listed["kept"], listed["quota"], listed["reserve"]) == (5 << 30, 10 << 30, 16 << 20)
    assert "5.0 GiB of 10.0 GiB pinned" in known("channel", "pins", "demo").stdout
    assert known.json("channel", "usage", "demo")["pinned"] == 5 << 30
    assert known.json("channel", "show", "demo")["channel"]["name"] == "demo"
    assert "5.0 GiB" in known("channel", "show", "demo").stdout
    assert known.json("channel", "unpin", "demo", uri) == {"stream": STREAM.hex, "was": True}
    assert known.json("channel", "unpin", "demo", uri)["was"] is False
    assert "nothing is pinned" in known("channel", "pins", "demo").stdout
    changes = [entry for entry in known.json("audit") if "pin" in entry["action"]]
    assert [entry["action"] for entry in changes] == ["channel.pin", "channel.pin", "channel.unpin"]
    assert changes[1]["detail"] == {"stream": STREAM.hex, "class": "archive"}


@pytest.mark.blocking
def test_a_pin_that_leaves_too_little_room_is_refused(known):
    """The error says how much would be left and how much is needed, and nothing is pinned."""
    known("channel", "quota", "demo", "5G")
    error = known.error("channel", "pin", "demo", STREAM.hex, code=6)
    assert error["kind"] == "over-quota"
    assert error["data"]["reserve"] == 16 << 20
    assert known.json("channel", "pins", "demo")["pins"] == []


@pytest.mark.blocking
@pytest.mark.parametrize(
    ("stream", "kind", "code"),
    [
        ("ff" * 32, "no-such-stream", 3),
        ("not an id", "invalid-id", 2),
        (f"entrepot://other/{'ff' * 32}", "invalid-uri", 2),
    ],
)
def test_what_is_no_stream_of_the_channel_is_refused(known, stream, kind, code):
    """Unknown, malformed or another channel's: each has its reason."""
    assert known.error("channel", "pin", "demo", stream, code=code)["kind"] == kind


@pytest.mark.blocking
def test_an_unknown_channel_has_no_pins(known):
    """All three commands say so."""
    assert known.error("channel", "pins", "nowhere", code=3)["kind"] == "no-such-channel"
    assert known.error("channel", "pin", "nowhere", STREAM.hex, code=3)["kind"] == "no-such-channel"
    assert known.error("channel", "unpin", "nowhere", STREAM.hex, code=3)["kind"] == "no-such-channel"


@pytest.mark.blocking
def test_a_quota_leaves_room_beside_the_pins(known):
    """A quota that the pins would fill is refused, with the mend; one that leaves room is taken."""
    known("channel", "pin", "demo", STREAM.hex)
    error = known.error("channel", "quota", "demo", "5G", code=6)
    assert error["kind"] == "over-quota"
    assert error["data"]["least"] == (5 << 30) + (16 << 20)
    assert known.json("channel", "list")[0]["quota"] == 10 << 30
    known("channel", "quota", "demo", "6G")
    assert known.json("channel", "list")[0]["quota"] == 6 << 30
