"""What a get would mean before it begins: how much has to move, and about how long and how dear that is."""

from __future__ import annotations

from dataclasses import dataclass

from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import StreamId
from entrepot.core.uri import StreamUri


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What an estimate takes for granted. Rates in bytes/s, prices in US dollars.

    Prices are the list prices of the large providers in 2026: $90 for each TiB that leaves the bucket, $5 for a
    million PUTs, $0.40 for a million GETs. Rates are 100 Mbit/s either way, which an office line has.
    """

    upload: float = 12.5e6
    download: float = 12.5e6
    egress: float = 90.0 / 2**40
    put: float = 5.0e-6
    get: float = 0.4e-6
    #: From the want to the first byte, where a holder has to upload first; seconds.
    first_byte: float = 1.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """``seconds`` for the transfer, ``dollars`` for the bucket's owner, bytes to upload and to download."""

    upload: int
    download: int
    seconds: float
    dollars: float


@dataclass(frozen=True, slots=True)
class HolderView:
    """A node that said it holds the stream; ``last_seen`` in unix seconds."""

    name: str
    online: bool
    last_seen: float


@dataclass(frozen=True, slots=True)
class Info:
    """What is known of a stream. Sizes in bytes; ``length`` None while nobody told it.

    ``missing`` are bytes that are not here; ``objects`` of the stream's ``object_count`` (``bucket_bytes``) lie in the
    bucket; ``estimate`` is for fetching what is missing, None where the length is not known. ``hub_reason`` says why
    the hub was not asked or did not answer.
    """

    uri: StreamUri
    stream: StreamId
    length: int | None
    name: str | None
    sha256: bytes | None
    held: bool
    missing: int | None
    object_count: int | None
    objects: int | None
    bucket_bytes: int | None
    holders: tuple[HolderView, ...]
    wanted_by: int | None
    estimate: Estimate | None
    hub_reason: str | None = None


def ready_bytes(geometry: Geometry, objects: int) -> int:
    """The plain bytes that so many objects of a stream hold: what they take in the bucket may be less, by the codec."""
    return min(objects * geometry.miniblocks_per_object * geometry.lock.miniblock, geometry.length)


def estimate(geometry: Geometry, missing: int, ready: int, assumptions: Assumptions | None = None) -> Estimate:
    """For ``missing`` plain bytes of a stream of which ``ready`` plain ones lie in the bucket already.

    A transfer is pipelined: it takes about as long as the slower of its two halves.
    """
    given = assumptions or Assumptions()
    if missing == 0:
        return Estimate(0, 0, 0.0, 0.0)
    upload = min(missing, max(geometry.length - ready, 0))
    size = max(geometry.miniblocks_per_object * geometry.lock.miniblock, 1)
    puts, gets = -(-upload // size), -(-missing // size)
    first = given.first_byte if upload else 0.0
    seconds = first + max(upload / given.upload, missing / given.download)
    dollars = missing * given.egress + puts * given.put + gets * given.get
    return Estimate(upload, missing, seconds, dollars)
