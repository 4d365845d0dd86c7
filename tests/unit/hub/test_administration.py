"""What the admin can do, and who hears of it."""

from __future__ import annotations

import asyncio
import secrets
import time

import pytest
import rich.pretty
from tests.servers.sqlite import migrated

from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput
from entrepot.core.keyring import derive_node_key
from entrepot.core.lock import SchemaLock
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.nats_identity import RANDOM_LENGTH, NatsIdentity
from entrepot_hub.core.sealing import SEAL_RANDOM, MasterKey, bucket_place
from entrepot_hub.services.administration import (
    Administration,
    ChannelCreate,
    InviteCreate,
    MemberGrant,
    MemberRevoke,
    NodeNamed,
    Nothing,
)
from entrepot_hub.services.vault import Vault, bucket_name

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
    async with await asyncio.to_thread(lambda: Database(migrated(tmp_path / "hub.db"))) as database:
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
        await made.create_channel(ChannelCreate(name="demo", bucket=(tmp_path / "bucket").as_uri(), create_bucket=True))
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
    await admin.create_channel(ChannelCreate(name="two", bucket=(tmp_path / "two").as_uri(), create_bucket=True))
    with pytest.raises(Conflict):
        await admin.create_channel(ChannelCreate(name="two", bucket=(tmp_path / "three").as_uri()))
    with pytest.raises(EntrepotError):
        await admin.create_channel(ChannelCreate(name="four", bucket="file:///proc/none/x", create_bucket=True))
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
    assert "hunter2" not in rich.pretty.pretty_repr(asked)


async def test_a_bucket_of_the_first_hub_is_known_again(admin):
    """Before there was one spelling, URLs were kept as somebody wrote them, and keys in another form."""
    vault, registry = admin._vault, admin._registry
    kept = "s3://lab/p?create=true&endpoint=http://127.0.0.1:1/&region=x"
    old = b'{"access_key":"a","secret_key":"hunter2","session_token":null}'
    sealed = vault.keys.seal(old, associated=bucket_place(kept), random=secrets.token_bytes(SEAL_RANDOM))
    assert vault.credentials(kept, sealed) == S3Credentials(access_key="a", secret_key="hunter2")
    assert not (await asyncio.to_thread(vault.bucket, kept, sealed))._settings.create
    lock = SchemaLock("cloud")
    await registry.create_channel(
        "cloud",
        quota=1 << 30,
        lock=lock,
        bucket=kept,
        prefix="p",
        credentials=sealed,
        binds={"length": True},
        now=1.0,
        actor="a",
    )
    url = "s3://lab/p?region=x&endpoint=http://127.0.0.1:1"
    assert vault.locate(kept) == (url, "p")
    assert not (await admin.create_channel(ChannelCreate(name="cloud", bucket=url, if_missing=True))).made
    assert (await admin.create_channel(ChannelCreate(name="more", bucket=url))).bucket == kept


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
