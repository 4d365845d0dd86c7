"""Buckets and their keys: sealed when they come in, opened where a bucket is opened, shown nowhere."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from typing import Final
from weakref import WeakKeyDictionary

import msgspec

from entrepot.core.errors import Conflict, NotFound
from entrepot.core.keys import owner_mark_key
from entrepot_hub.adapters.buckets.credentials import Credentials
from entrepot_hub.adapters.buckets.folder import FolderBucket
from entrepot_hub.adapters.buckets.interface import Binds, Bucket
from entrepot_hub.adapters.buckets.keys import decode_keys, encode_keys, parse_keys
from entrepot_hub.adapters.buckets.location import FolderLocation, parse_location, spell_location
from entrepot_hub.adapters.buckets.opening import open_bucket
from entrepot_hub.core.master_keys import MasterKeys
from entrepot_hub.core.members import BucketRecord
from entrepot_hub.core.sealing import SEAL_RANDOM, MasterKey, bucket_place

_FOLDER_DOMAIN: Final = b"entrepot.folder\0"
_MAX_MARK: Final = 4096
#: For so many seconds URLs of folder buckets hold that were signed under another master key: longer than any lives.
_FORMER_URLS: Final = 1800.0


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    hub: str


class Vault:
    """Opens buckets. ``master`` seals their keys and signs the URLs of folder buckets; ``public_url`` is the
    hub's."""

    def __init__(
        self, master: MasterKey | MasterKeys, hub_public: str, public_url: str, clock: Callable[[], float]
    ) -> None:
        self.keys = MasterKeys.of(master)
        self._folders = WeakKeyDictionary[FolderBucket, str]()
        self._hub_public = hub_public
        self._public_url = public_url
        self._clock = clock

    def locate(self, url: str) -> tuple[str, str]:
        """The one spelling of a bucket's URL, and the prefix of its keys. Whether it is to be made is no part of where
        it is: see :meth:`creates`. InvalidInput (``invalid-setting``)."""
        place = parse_location(url)
        return spell_location(replace(place, create=False)), place.prefix

    def creates(self, url: str) -> bool:
        """Whether the URL asks that the bucket be made if it is missing. InvalidInput (``invalid-setting``)."""
        return parse_location(url).create

    def seal(self, url: str, document: bytes) -> bytes:
        """Keys of the bucket at ``url``, as people give them (see
        :func:`entrepot_hub.adapters.buckets.keys.parse_keys`), sealed for it alone. InvalidInput
        (``invalid-setting``)."""
        keys = parse_keys(document, parse_location(url))
        random = secrets.token_bytes(SEAL_RANDOM)
        return self.keys.seal(encode_keys(keys), associated=bucket_place(url), random=random)

    def bucket(self, url: str, credentials: bytes | None, *, create: bool = False) -> Bucket:
        """The bucket at ``url`` with its sealed keys, not started; with ``create`` its start makes it if it is missing.
        Blocking: a driver is imported when it is first needed. Raises InvalidInput, Denied, Corrupt."""
        bucket = open_bucket(
            replace(parse_location(url), create=create),
            name=bucket_name(url),
            credentials=None if credentials is None else self.credentials(url, credentials),
            secret=_folder_secret(self.keys.sealing, url),
            public_url=self._public_url,
            clock=self._clock,
        )
        if isinstance(bucket, FolderBucket):
            self._folders[bucket] = url
            self._give_secrets(bucket, url)
        return bucket

    def credentials(self, url: str, sealed: bytes) -> Credentials:
        """The keys of the bucket at ``url``. Raises Denied, Corrupt."""
        return decode_keys(self.keys.unseal(sealed, associated=bucket_place(url)))

    def same(self, url: str, sealed: bytes, other: bytes | None) -> bool:
        """Whether two sealed blobs hold the same keys of the bucket at ``url``. Raises as :meth:`credentials`."""
        return other is not None and self.credentials(url, sealed) == self.credentials(url, other)

    def give_secrets(self) -> None:
        """The master keys changed: the folder buckets sign by the sealing one. What the others signed is taken for as
        long as a URL lives."""
        for bucket, url in list(self._folders.items()):
            self._give_secrets(bucket, url)

    def _give_secrets(self, bucket: FolderBucket, url: str) -> None:
        sealing, *others = (_folder_secret(key, url) for key in self.keys.all)
        bucket.change_secret(sealing, others, self._clock() + _FORMER_URLS)

    async def open(self, record: BucketRecord) -> Bucket:
        """The bucket of a channel, ready. What its provider was found to bind holds. Raises what opening
        raises."""
        bucket = await asyncio.to_thread(self.bucket, record.url, record.credentials)
        if record.binds:
            bucket.binds = msgspec.convert(dict(record.binds), Binds)
        try:
            await bucket.start()
        except BaseException:
            await bucket.aclose()
            raise
        return bucket

    async def survey(self, url: str, credentials: bytes | None, *, create: bool = False) -> dict[str, bool]:
        """Look at a bucket before a channel is put there: can it be used, what does its provider bind, is the
        prefix free or already this hub's? Marks it as this hub's. With ``create`` it is made if it is missing.

        Raises Conflict (``in-use``) when another hub owns it, and what the bucket raises.
        """
        async with await asyncio.to_thread(partial(self.bucket, url, credentials, create=create)) as bucket:
            await bucket.start()
            await self._claim(bucket)
            if not isinstance(parse_location(url), FolderLocation):
                await bucket.probe(bucket.prefix)
            return asdict(bucket.binds)

    @property
    def hub_public(self) -> str:
        """The hub's public key."""
        return self._hub_public

    @staticmethod
    async def owner(bucket: Bucket) -> str | None:
        """The hub that marked the bucket's prefix as its own: its public key, ``?`` for a mark that cannot be read,
        None where there is no mark. Raises what the bucket raises."""
        try:
            return msgspec.json.decode(await bucket.read(owner_mark_key(bucket.prefix), 0, _MAX_MARK), type=_Mark).hub
        except NotFound:
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "?"

    async def _claim(self, bucket: Bucket) -> None:
        key = owner_mark_key(bucket.prefix)
        if await bucket.create(key, msgspec.json.encode(_Mark(hub=self._hub_public))):
            return
        owner = await self.owner(bucket) or "?"
        if owner != self._hub_public:
            raise Conflict(
                "another hub owns this prefix of the bucket",
                kind="in-use",
                hint=f"Use another prefix, or remove {key} if that hub is gone for good.",
                owner=owner,
            )


def bucket_name(url: str) -> str:
    """The hub's name for the bucket at this URL: it stands in the URLs of folder buckets."""
    return sha256(bucket_place(url)).hexdigest()[:16]


def _folder_secret(key: MasterKey, url: str) -> bytes:
    return hmac.digest(key.raw, _FOLDER_DOMAIN + url.encode(), "sha256")
