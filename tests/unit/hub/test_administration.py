"""What the admin can do, and who hears of it."""

from __future__ import annotations

import asyncio
import secrets
import time

import pytest

from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput
from entrepot.core.keyring import derive_node_key
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.nats_identity import RANDOM_LENGTH, NatsIdentity
from entrepot_hub.core.sealing import MasterKey
from entrepot_hub.services.administration import (
    Administration,
    ChannelCreate,
    InviteCreate,
    MemberGrant,
    MemberRevoke,
    NodeNamed,
    Nothing,
)
from entrepot_hub.services.vault import Vault, bucket_name, parse_keys

HUB = NatsIdentity.create(secrets.token_bytes(RANDOM_LENGTH)).hub_public
KEY = derive_node_key(bytes(32), HUB).public
MASTER = MasterKey(secrets.token_bytes(32))


class Heard:
    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.error: Exception | None = None

    async def on_revoked(self, node, channel):
        self.calls.append(("revoked", node, channel))
        if self.error is not None:
            raise self.error

    async def on_granted(self, node, channel):
        self.calls.append(("granted", node, channel))

    async def on_channel(self, channel):
        self.calls.append(("channel", channel))


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
async def admin(tmp_path, heard):
    """An administration over a real database, with the channel ``demo`` and the node ``lab``."""
    async with await asyncio.to_thread(Database, f"sqlite:///{tmp_path}/hub.db") as database:
        await database.migrate()
        registry = Registry(database, MASTER)
        vault = Vault(MASTER, HUB, "https://hub.example.org", time.time)
        made = Administration(
            registry,
            vault,
            hub_public=HUB,
            urls=("https://hub.example.org",),
            clock=time.time,
            changes=heard,
        )
        await made.create_channel(ChannelCreate(name="demo", bucket=(tmp_path / "bucket").as_uri()))
        await registry.add_node(KEY, "lab", now=time.time())
        heard.calls.clear()
        yield made


async def grant(admin, rights):
    return await admin.grant(MemberGrant(name="demo", node="lab", rights=rights))


async def test_taking_rights_away_is_told_at_once(admin, heard):
    """Revoke, suspend, and a grant of less than before all cut the node off; more than before does not."""
    await grant(admin, "request")
    await grant(admin, "request,provide")
    await grant(admin, "provide")
    await admin.revoke(MemberRevoke(name="demo", node="lab"))
    await grant(admin, "read")
    await admin.suspend(NodeNamed(node="lab"))
    await admin.resume(NodeNamed(node="lab"))
    assert heard.calls == [
        ("granted", KEY, "demo"),
        ("granted", KEY, "demo"),
        ("revoked", KEY, "demo"),
        ("revoked", KEY, "demo"),
        ("granted", KEY, "demo"),
        ("revoked", KEY, None),
        ("granted", KEY, None),
    ]


async def test_a_revocation_that_nobody_heard_can_be_repeated(admin, heard):
    """The rights are gone in the database first; when the bus does not confirm, the admin is told and tries again."""
    await grant(admin, "request")
    heard.error = Denied("bus away")
    for _ in range(2):
        with pytest.raises(Denied):
            await admin.revoke(MemberRevoke(name="demo", node=KEY))
    heard.error = None
    assert not (await admin.revoke(MemberRevoke(name="demo", node=KEY))).active
    assert heard.calls.count(("revoked", KEY, "demo")) == 3


async def test_a_wrong_right_changes_nothing(admin, heard):
    """Words that are no rights are refused before anybody hears of them."""
    with pytest.raises(InvalidInput):
        await grant(admin, "everything")
    assert heard.calls == []


async def test_a_channel_is_announced_once_it_is_there(admin, heard, tmp_path):
    """A second one of the same name, or one whose bucket cannot be used, is not."""
    await admin.create_channel(ChannelCreate(name="two", bucket=(tmp_path / "two").as_uri()))
    with pytest.raises(Conflict):
        await admin.create_channel(ChannelCreate(name="two", bucket=(tmp_path / "three").as_uri()))
    with pytest.raises(EntrepotError):
        await admin.create_channel(ChannelCreate(name="four", bucket="file:///proc/none/x"))
    assert heard.calls == [("channel", "two")]
    assert [channel.name for channel in await admin.list_channels(Nothing())] == ["demo", "two"]


async def test_two_spellings_of_a_folder_are_one_bucket(admin, tmp_path):
    """A channel that names the same folder shares it."""
    first = await admin.show_channel(InviteCreate(name="demo"))
    url = first.channel.bucket.replace("/bucket", "//bucket/")
    second = await admin.create_channel(ChannelCreate(name="same", bucket=url))
    assert second.bucket == first.channel.bucket


async def test_an_invites_url_is_in_no_repr(admin):
    """What is printed or logged of a new invite holds no secret."""
    made = await admin.create_invite(InviteCreate(name="demo"))
    token = made.url.rpartition("/")[2]
    assert len(token) == 91
    assert token not in repr(made)


def test_a_request_with_keys_does_not_show_them():
    """Credentials are masked wherever the request is printed."""
    asked = ChannelCreate(name="c", bucket="s3://b", credentials="hunter2")
    assert "hunter2" not in repr(asked)


@pytest.mark.parametrize(
    "document", [b'{"access_key": "a", "secret_key": "s"}', b'access_key = "a"\nsecret_key = "s"\n']
)
def test_a_buckets_keys_are_json_or_toml(document):
    """Both forms that people keep keys in."""
    assert (parse_keys(document).access_key, parse_keys(document).secret_key) == ("a", "s")


@pytest.mark.parametrize("document", [b"", b"{", b"[1]", b'{"access_key": "hunter2"}', b"\xff", b"hunter2", b"x = 1"])
def test_other_keys_are_refused_unseen(document):
    """The error says the form, never the text."""
    with pytest.raises(InvalidInput) as caught:
        parse_keys(document)
    assert "hunter2" not in f"{caught.value!r} {caught.value.hint}"


def test_sealed_keys_open_for_their_bucket_only():
    """A sealed key moved to another bucket's row, or another hub, does not open."""
    vault = Vault(MASTER, HUB, "https://hub.example.org", time.time)
    one, two = "s3://one-b?region=auto", "s3://two-b?region=auto"
    sealed = vault.seal(one, b'{"access_key": "a", "secret_key": "hunter2"}')
    assert b"hunter2" not in sealed
    assert vault.bucket(one, sealed).name == bucket_name(one)
    with pytest.raises(Denied):
        vault.bucket(two, sealed)
    with pytest.raises(Denied):
        Vault(MasterKey(bytes(32)), HUB, "https://hub.example.org", time.time).bucket(one, sealed)
