"""Buckets: where the bytes are set down and collected. One interface, one driver per kind of provider."""

from entrepot_hub.adapters.buckets.interface import (
    Binds,
    Bucket,
    DigestKind,
    Entry,
    Facts,
    Head,
    Listing,
    SignedRequest,
    check_key,
)

__all__ = ["Binds", "Bucket", "DigestKind", "Entry", "Facts", "Head", "Listing", "SignedRequest", "check_key"]
