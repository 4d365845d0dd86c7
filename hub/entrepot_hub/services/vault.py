"""Buckets and their keys: sealed when they come in, opened where a bucket is opened, shown nowhere."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from typing import Final
from urllib.parse import quote

import msgspec

from entrepot.core.errors import Conflict, InvalidInput, NotFound
from entrepot.core.keys import owner_mark_key
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.buckets.interface import Binds, Bucket
from entrepot_hub.adapters.buckets.location import FolderLocation, open_bucket, parse_location
from entrepot_hub.core.members import BucketRecord
from entrepot_hub.core.sealing import SEAL_RANDOM, MasterKey, seal, unseal

_PLACE: Final = b"entrepot.bucket\0"
_FOLDER_DOMAIN: Final = b"entrepot.folder\0"
_MAX_MARK: Final = 4096


class _Keys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    access_key: str
    secret_key: str
    session_token: str | None = None


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    hub: str


class Vault:
    """Opens buckets. ``master`` seals their keys and signs the URLs of folder buckets; ``public_url`` is the
    hub's."""

    def __init__(self, master: MasterKey, hub_public: str, public_url: str, clock: Callable[[], float]) -> None:
        self._master = master
        self._hub_public = hub_public
        self._public_url = public_url
        self._clock = clock

    def locate(self, url: str) -> tuple[str, str]:
        """The one spelling of a bucket's URL, and the prefix of its keys. InvalidInput
        (``invalid-setting``)."""
        place = parse_location(url)
        if isinstance(place, FolderLocation):
            prefix = f"?prefix={quote(place.prefix, safe='/')}" if place.prefix else ""
            return f"file://{quote(str(place.path))}{prefix}", place.prefix
        return url, place.prefix

    def seal(self, url: str, document: bytes) -> bytes:
        """Keys of the bucket at ``url``, as people give them (see :func:`parse_keys`), sealed for it
        alone."""
        keys = parse_keys(document)
        random = secrets.token_bytes(SEAL_RANDOM)
        return seal(msgspec.json.encode(keys), key=self._master, associated=_place(url), random=random)

    def bucket(self, url: str, credentials: bytes | None) -> Bucket:
        """The bucket at ``url`` with its sealed keys, not started. Blocking: a driver is imported when it is
        first needed. Raises InvalidInput, Denied, Corrupt."""
        keys = None
        if credentials is not None:
            opened = msgspec.json.decode(unseal(credentials, key=self._master, associated=_place(url)), type=_Keys)
            keys = S3Credentials(
                access_key=opened.access_key, secret_key=opened.secret_key, session_token=opened.session_token
            )
        return open_bucket(
            url,
            name=bucket_name(url),
            credentials=keys,
            secret=hmac.digest(self._master.raw, _FOLDER_DOMAIN + url.encode(), "sha256"),
            public_url=self._public_url,
            clock=self._clock,
        )

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

    async def survey(self, url: str, credentials: bytes | None) -> dict[str, bool]:
        """Look at a bucket before a channel is put there: can it be used, what does its provider bind, is the
        prefix free or already this hub's? Marks it as this hub's.

        Raises Conflict (``in-use``) when another hub owns it, and what the bucket raises.
        """
        async with await asyncio.to_thread(self.bucket, url, credentials) as bucket:
            await bucket.start()
            await self._claim(bucket)
            if not isinstance(parse_location(url), FolderLocation):
                await _probe(bucket)
            return asdict(bucket.binds)

    async def _claim(self, bucket: Bucket) -> None:
        key = owner_mark_key(bucket.prefix)
        if await bucket.create(key, msgspec.json.encode(_Mark(hub=self._hub_public))):
            return
        try:
            owner = msgspec.json.decode(await bucket.read(key, 0, _MAX_MARK), type=_Mark).hub
        except (msgspec.MsgspecError, NotFound):
            owner = "?"
        if owner != self._hub_public:
            raise Conflict(
                "another hub owns this prefix of the bucket",
                kind="in-use",
                hint=f"Use another prefix, or remove {key} if that hub is gone for good.",
                owner=owner,
            )


def parse_keys(document: bytes) -> _Keys:
    """A bucket's keys as people keep them: JSON or TOML with ``access_key``, ``secret_key`` and, for
    temporary ones, ``session_token``. Raises InvalidInput, never showing what was given."""
    decode = msgspec.json.decode if document.lstrip().startswith(b"{") else msgspec.toml.decode
    try:
        return decode(document, type=_Keys)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidInput(
            "these are no keys of a bucket",
            kind="invalid-setting",
            hint='Write {"access_key": "…", "secret_key": "…"}, nothing else.',
        ) from None


def bucket_name(url: str) -> str:
    """The hub's name for the bucket at this URL: it stands in the URLs of folder buckets."""
    return sha256(_PLACE + url.encode()).hexdigest()[:16]


def _place(url: str) -> bytes:
    return _PLACE + url.encode()


async def _probe(bucket: Bucket) -> None:
    """Let an S3 bucket find out what its provider holds."""
    from entrepot_hub.adapters.buckets.s3 import S3Bucket

    if isinstance(bucket, S3Bucket):
        await bucket.probe(bucket.prefix)
