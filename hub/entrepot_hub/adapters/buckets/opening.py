"""From a location and its keys to the driver that serves it. Drivers are imported when they are first needed."""

from __future__ import annotations

import time
from collections.abc import Callable

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.credentials import Credentials
from entrepot_hub.adapters.buckets.folder import FolderBucket, FolderSettings
from entrepot_hub.adapters.buckets.interface import Bucket
from entrepot_hub.adapters.buckets.location import (
    AzureLocation,
    FolderLocation,
    GcsLocation,
    Location,
    S3Location,
    parse_location,
)


def open_bucket(
    location: str | Location,
    *,
    name: str,
    credentials: Credentials | None = None,
    secret: bytes | None = None,
    public_url: str | None = None,
    folder: FolderSettings | None = None,
    clock: Callable[[], float] = time.time,
) -> Bucket:
    """The bucket at a location, not started yet; ``name`` is the hub's for it.

    A bucket at a provider needs ``credentials``; a folder needs the hub's ``public_url`` and a ``secret`` of at least
    16 bytes that signs its URLs. Raises ``InvalidInput(invalid-setting)``. Blocking: a provider's library takes a
    third of a second to import, and who serves folders never needs one.
    """
    place = parse_location(location) if isinstance(location, str) else location
    if isinstance(place, FolderLocation):
        if secret is None or public_url is None:
            raise InvalidInput("a folder bucket needs a secret and the hub's public URL", kind="invalid-setting")
        return FolderBucket(
            place.path,
            name=name,
            secret=secret,
            public_url=public_url,
            prefix=place.prefix,
            create=place.create,
            settings=folder,
            clock=clock,
        )
    if credentials is None:
        raise InvalidInput(
            "this bucket needs keys",
            kind="invalid-setting",
            hint='Give them by --credentials-file or --credentials-stdin; {"ambient": true} stands for what the hub\'s '
            "own machine is allowed to.",
        )
    match place:
        case S3Location():
            from entrepot_hub.adapters.buckets.s3 import S3Bucket

            return S3Bucket(place.settings(credentials), name=name, clock=clock)
        case GcsLocation():
            from entrepot_hub.adapters.buckets.gcs import GcsBucket

            return GcsBucket(place.settings(credentials), name=name, clock=clock)
        case AzureLocation():
            from entrepot_hub.adapters.buckets.azure import AzureBucket

            return AzureBucket(place.settings(credentials), name=name, clock=clock)
