"""What is known of the providers that speak the S3 protocol before anything was tried: one profile for each.

``docs/buckets.md`` names the sources. A probe (:meth:`Bucket.probe`) replaces what a profile claims by what is true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from entrepot_hub.adapters.buckets.interface import Binds, DigestKind

type ProfileName = Literal["aws", "minio", "r2", "wasabi", "gcs", "generic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """``binds``: what the provider documents. ``digest``: what it checks an upload by and shows afterwards.

    ``endpoint``: where the provider serves, with ``{region}`` in it; ``None`` where everybody has their own.
    ``virtual``: the bucket's name stands in the host. ``conditional_put``: ``If-None-Match: *`` may be sent with a PUT;
    where it is false a create looks first. ``location_constraint``: a new bucket has to be told its region.
    ``soft_delete``: seconds for which the provider keeps what was deleted, ``None`` where its S3 API does not tell.
    """

    binds: Binds
    digest: DigestKind
    endpoint: str | None = None
    virtual: bool = False
    conditional_put: bool = True
    location_constraint: bool = False
    soft_delete: float | None = None


_EVERYTHING: Final = Binds(
    length=True,
    digest=True,
    create_only=True,
    expiry=True,
    head_digest=True,
    get_if=True,
    delete_if=True,
    replace_if=True,
)

PROFILES: Final[Mapping[ProfileName, Profile]] = {
    # Conditional writes since 2024, conditional deletes since 2025.
    "aws": Profile(
        binds=_EVERYTHING,
        digest="sha256",
        endpoint="https://s3.{region}.amazonaws.com",
        virtual=True,
        location_constraint=True,
        soft_delete=0.0,
    ),
    # Until the summer of 2025 a conditional replacement of what was gone succeeded.
    "minio": Profile(binds=replace(_EVERYTHING, delete_if=False, replace_if=False), digest="sha256", soft_delete=0.0),
    # Of a whole object R2 keeps no SHA-256, only the MD5 in its ETag.
    "r2": Profile(binds=replace(_EVERYTHING, delete_if=False), digest="md5", soft_delete=0.0),
    # Says nothing of conditional writes.
    "wasabi": Profile(
        binds=replace(_EVERYTHING, create_only=False, delete_if=False, replace_if=False),
        digest="md5",
        endpoint="https://s3.{region}.wasabisys.com",
        virtual=True,
    ),
    # Google's XML API with HMAC keys. Its own condition is a header x-goog-…, which it refuses beside those of S3.
    "gcs": Profile(
        binds=replace(_EVERYTHING, create_only=False, delete_if=False, replace_if=False),
        digest="md5",
        endpoint="https://storage.googleapis.com",
        conditional_put=False,
    ),
    # What every server that checks signatures holds; the rest has to be found.
    "generic": Profile(
        binds=Binds(
            length=False,
            digest=False,
            create_only=False,
            expiry=True,
            head_digest=False,
            get_if=False,
            delete_if=False,
            replace_if=False,
        ),
        digest="sha256",
    ),
}
