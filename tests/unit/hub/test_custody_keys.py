"""Master keys that change, and buckets whose keys change, while both are in use."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from entrepot.core.errors import Corrupt, Denied
from entrepot.core.exchange.settings import ExchangeSettings
from entrepot_hub.adapters.buckets import Head
from entrepot_hub.adapters.buckets.folder import FolderBucket
from entrepot_hub.adapters.buckets.rekeyed import RekeyedBucket
from entrepot_hub.core.master_keys import CHANGE_RANDOM, Change, MasterKeys
from entrepot_hub.core.sealing import RESEAL_RANDOM, SEAL_RANDOM, MasterKey, same_secret, seal
from entrepot_hub.services.custody import SetCredentials, safe_at
from entrepot_hub.services.rotation import RotateMaster

OLD, NEW, THIRD = (MasterKey(bytes([number]) * 32) for number in (1, 2, 3))
PLACE = b"here"


def sealed(key: MasterKey, secret: bytes = b"secret") -> bytes:
    return seal(secret, key=key, associated=PLACE, random=os.urandom(SEAL_RANDOM))


def test_either_key_opens_and_the_first_seals() -> None:
    """While a master key is being changed both open; what is sealed is sealed under the one that was turned to."""
    keys = MasterKeys(OLD)
    keys.also(NEW)
    for key in (OLD, NEW):
        assert keys.unseal(sealed(key), associated=PLACE) == b"secret"
    with pytest.raises(Denied):
        keys.unseal(sealed(THIRD), associated=PLACE)
    keys.turn(NEW)
    blob = keys.seal(b"x", associated=PLACE, random=os.urandom(SEAL_RANDOM))
    assert MasterKeys(NEW).unseal(blob, associated=PLACE) == b"x"
    assert keys.named(OLD.fingerprint) == OLD
    keys.only(NEW)
    assert keys.all == (NEW,)
    assert keys.named(OLD.fingerprint) is None
    with pytest.raises(Denied):
        keys.unseal(sealed(OLD), associated=PLACE)


def test_sealing_again_keeps_the_secret_and_is_idempotent() -> None:
    """A blob under another master key is the same secret; one that is under it already is left as it is."""
    keys, blob = MasterKeys(OLD, NEW), sealed(OLD)
    again = keys.reseal(blob, to=NEW, associated=PLACE, random=os.urandom(RESEAL_RANDOM))
    assert again != blob
    assert same_secret(again, blob)
    assert MasterKeys(NEW).unseal(again, associated=PLACE) == b"secret"
    assert keys.reseal(again, to=NEW, associated=PLACE, random=os.urandom(RESEAL_RANDOM)) == again
    assert not same_secret(sealed(OLD), sealed(OLD))
    assert not same_secret(blob, None)
    assert same_secret(None, None)


def test_a_change_is_read_by_either_key_and_by_no_other() -> None:
    """Whoever has the old or the new key has both; what is kept of the change shows neither."""
    blob = Change(OLD, NEW).write(os.urandom(CHANGE_RANDOM))
    for key in (OLD, NEW):
        change = Change.read(blob, key)
        assert (change.old, change.new) == (OLD, NEW)
    with pytest.raises(Denied):
        Change.read(blob, THIRD)
    with pytest.raises(Corrupt):
        Change.read(blob[:50], OLD)
    assert OLD.raw not in blob
    assert NEW.raw not in blob


@pytest.mark.parametrize(
    "value",
    [
        MasterKeys(OLD, NEW),
        Change(OLD, NEW),
        RotateMaster(new_key=OLD.raw.hex()),
        SetCredentials(name="demo", credentials=OLD.raw.hex()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_secret_is_in_a_repr(value: object) -> None:
    """Neither keys nor requests that carry one show it."""
    assert OLD.raw.hex() not in repr(value)
    assert repr(OLD.raw) not in repr(value)


def test_keys_are_kept_until_the_last_url_is_over() -> None:
    """The old keys are needed for as long as a PUT that began in time may go on, and a GET may begin."""
    settings = ExchangeSettings(put_url=100.0, put_grace=50.0, get_url=1000.0)
    assert safe_at(0.0, settings) > 1000.0
    assert safe_at(0.0, ExchangeSettings(put_url=2000.0, put_grace=50.0, get_url=1000.0)) > 2050.0


async def test_urls_of_a_folder_outlive_a_new_secret_for_a_while(tmp_path: Any) -> None:
    """What was signed before a change of the secret is taken until then, and not afterwards; what no secret signed
    never is."""
    now = [time.time()]

    def made(secret: bytes) -> FolderBucket:
        return FolderBucket(tmp_path, name="b", secret=secret, public_url="http://h", clock=lambda: now[0])

    def permitted(url: str) -> bool:
        parts = urlsplit(url)
        try:
            bucket.permission("GET", parts.path.removeprefix("/bucket/b/"), parse_qsl(parts.query))
        except Denied:
            return False
        return True

    bucket, stranger = made(b"1" * 32), made(b"3" * 32)
    before = (await bucket.sign_get("a", None, 3600)).url
    bucket.change_secret(b"2" * 32, [b"1" * 32], now[0] + 60)
    after = (await bucket.sign_get("a", None, 3600)).url
    forged = (await stranger.sign_get("a", None, 3600)).url
    assert (permitted(before), permitted(after), permitted(forged)) == (True, True, False)
    now[0] += 61
    assert (permitted(before), permitted(after), permitted(forged)) == (False, True, False)
    for each in (bucket, stranger):
        await each.aclose()


class Slow:
    """A bucket that answers when it is told to."""

    name, prefix, binds, digest_kind = "slow", "", None, "sha256"

    def __init__(self, etag: str) -> None:
        self.etag = etag
        self.go = asyncio.Event()
        self.asked = asyncio.Event()
        self.closed = 0

    async def head(self, _key: str) -> Head:
        self.asked.set()
        await self.go.wait()
        assert not self.closed
        return Head(length=0, etag=self.etag, digest=None, modified=0.0)

    async def aclose(self) -> None:
        self.closed += 1


async def test_calls_under_way_finish_with_the_keys_they_began_with() -> None:
    """A call that began before the keys changed gets its answer, later ones go by the new keys, and what was opened
    with the old ones is closed once, after the last of its calls."""
    old, new = Slow("old"), Slow("new")
    bucket: Any = RekeyedBucket(old)  # type: ignore[arg-type]  # it has what is called
    async with asyncio.TaskGroup() as group:
        first, second = (group.create_task(bucket.head("a")) for _ in range(2))
        await old.asked.wait()
        await bucket.replace(new)
        assert (bucket.edition, old.closed) == (1, 0)
        new.go.set()
        assert (await bucket.head("a")).etag == "new"
        old.go.set()
    assert first.result().etag == second.result().etag == "old"
    assert (old.closed, new.closed) == (1, 0)
    newest = Slow("newest")
    await bucket.replace(newest)
    assert new.closed == 1
    await bucket.aclose()
    assert newest.closed == 1
