"""What a provider asks for, and what traffic costs by it.

The lists are list prices of one region each: good enough to see what dominates a bill and to stop at a budget, and to
be replaced by the admin's own. Money is computed exactly, as fractions, and rounded only where it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Final
from urllib.parse import parse_qs, urlsplit

from entrepot.core.errors import InvalidInput, NotFound
from entrepot_hub.core.usage import Tally

GIB: Final = 1 << 30
#: A month as providers count it for storage: 730 hours.
MONTH_SECONDS: Final = 730 * 3600
#: The name of a list for one channel begins so.
CHANNEL_LIST: Final = "channel:"

_MAX_PRICE: Final = Decimal(1_000_000)
_PRICE = re.compile(r"[0-9]{1,7}(?:\.[0-9]{1,12})?")
_CURRENCY = re.compile(r"[A-Z]{3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceList:
    """Prices in ``currency``: ``storage`` of a GiB for a month, ``requests_a`` (writes and lists), ``requests_b``
    (looks and reads) and ``deletes`` of a thousand, ``egress`` of a GiB read. ``as_of`` and ``source``: when and where
    they are from."""

    storage: Decimal = Decimal(0)
    requests_a: Decimal = Decimal(0)
    requests_b: Decimal = Decimal(0)
    deletes: Decimal = Decimal(0)
    egress: Decimal = Decimal(0)
    currency: str = "USD"
    as_of: str = ""
    source: str = ""


#: Nothing costs anything.
NO_PRICES: Final = PriceList()
#: What may be set of a list, as text.
PRICES: Final = ("storage", "requests_a", "requests_b", "deletes", "egress")

#: Built in. A channel's list follows from its bucket, see :func:`list_name`.
BUILT_IN: Final[Mapping[str, PriceList]] = {
    "aws": PriceList(
        storage=Decimal("0.023"),
        requests_a=Decimal("0.005"),
        requests_b=Decimal("0.0004"),
        egress=Decimal("0.09"),
        as_of="2026",
        source="as commonly quoted; check at aws.amazon.com/s3/pricing: Standard, US East, to the internet",
    ),
    "gcs": PriceList(
        storage=Decimal("0.020"),
        requests_a=Decimal("0.005"),
        requests_b=Decimal("0.0004"),
        egress=Decimal("0.12"),
        as_of="2026",
        source="as commonly quoted; check at cloud.google.com/storage/pricing: Standard, us-central1, to the internet",
    ),
    "azure": PriceList(
        storage=Decimal("0.018"),
        requests_a=Decimal("0.005"),
        requests_b=Decimal("0.0004"),
        egress=Decimal("0.087"),
        as_of="2026",
        source="as commonly quoted; check at azure.microsoft.com/pricing/details/storage/blobs: Hot, LRS, East US",
    ),
    "r2": PriceList(
        storage=Decimal("0.015"),
        requests_a=Decimal("0.0045"),
        requests_b=Decimal("0.00036"),
        as_of="2026-08",
        source="developers.cloudflare.com/r2/pricing: Standard, without the free tier",
    ),
    "wasabi": PriceList(
        storage=Decimal("0.0068"),
        as_of="2026",
        source="as commonly quoted; check at wasabi.com/pricing: pay as you go, without the minimum of 1 TB",
    ),
    "generic": PriceList(as_of="2026", source="a server of one's own: nothing is charged for until it is set"),
    "folder": PriceList(as_of="2026", source="a folder of the hub's machine: nothing is charged for until it is set"),
}

#: Which list an endpoint of the S3 protocol belongs to, by the end of its host.
_HOSTS: Final = {
    "amazonaws.com": "aws",
    "amazonaws.com.cn": "aws",
    "r2.cloudflarestorage.com": "r2",
    "wasabisys.com": "wasabi",
    "storage.googleapis.com": "gcs",
}
_SCHEMES: Final = {"file": "folder", "gs": "gcs", "gcs": "gcs", "azblob": "azure"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What traffic costs, exactly."""

    storage: Fraction = field(default_factory=Fraction)
    requests: Fraction = field(default_factory=Fraction)
    egress: Fraction = field(default_factory=Fraction)

    @property
    def total(self) -> Fraction:
        """All of it."""
        return self.storage + self.requests + self.egress


def cost(tally: Tally, prices: PriceList) -> Bill:
    """What the traffic costs. Downloads are what was signed for reading, so ``egress`` is an upper bound."""
    a, b, deletes = Fraction(prices.requests_a), Fraction(prices.requests_b), Fraction(prices.deletes)
    return Bill(
        storage=Fraction(tally.byte_seconds) * Fraction(prices.storage) / (GIB * MONTH_SECONDS),
        requests=(tally.requests_a * a + tally.requests_b * b + tally.deletes * deletes) / 1000,
        egress=tally.downloaded * Fraction(prices.egress) / GIB,
    )


def rounded(money: Fraction, places: int = 4) -> Decimal:
    """Money as it is shown, half up."""
    scaled = Decimal(10) ** -places
    return (Decimal(money.numerator) / Decimal(money.denominator)).quantize(scaled, rounding=ROUND_HALF_UP)


def list_name(url: str) -> str:
    """The name of the built-in list for the bucket at this URL: by its profile, its endpoint, its scheme."""
    parts = urlsplit(url)
    if parts.scheme in _SCHEMES:
        return _SCHEMES[parts.scheme]
    fields = {name: values[0] for name, values in parse_qs(parts.query).items()}
    profile = fields.get("profile", "")
    if profile in BUILT_IN and profile != "generic":
        return profile
    if "endpoint" not in fields:
        return "aws"
    host = urlsplit(fields["endpoint"]).hostname or ""
    for end, name in _HOSTS.items():
        if host == end or host.endswith("." + end):
            return name
    return "generic"


def prices_for(channel: str, url: str, changed: Mapping[str, PriceList]) -> tuple[str, PriceList]:
    """The name of the list that a channel's bucket goes by, and the list: the channel's own, the provider's as the
    admin changed it, or the built-in one."""
    for name in (f"{CHANNEL_LIST}{channel}", list_name(url)):
        if name in changed:
            return name, changed[name]
    return list_name(url), BUILT_IN[list_name(url)]


def starting_list(name: str, changed: Mapping[str, PriceList]) -> PriceList:
    """The list of this name before a change: as it stands, or all zero for a channel's first. NotFound for a name that
    is neither a provider's nor a channel's."""
    if name in changed:
        return changed[name]
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name.startswith(CHANNEL_LIST) and len(name) > len(CHANNEL_LIST):
        return PriceList()
    raise NotFound(
        f"there is no price list {name[:80]!r}",
        hint=f"Lists are {', '.join(BUILT_IN)}, and {CHANNEL_LIST}NAME for one channel.",
    )


def with_prices(
    prices: PriceList, changes: Mapping[str, str], *, currency: str | None, as_of: str, source: str
) -> PriceList:
    """The list with other prices, given as plain decimals. InvalidInput for what is none."""
    found: dict[str, Decimal] = {}
    for name, text in changes.items():
        if name not in PRICES:
            raise InvalidInput(f"there is no price {name[:40]!r}", hint=f"Prices are {', '.join(PRICES)}.")
        found[name] = parse_money(text)
    if currency is not None and not _CURRENCY.fullmatch(currency):
        raise InvalidInput(f"{currency[:20]!r} is no currency", hint="Write three capital letters, like EUR.")
    return replace(prices, **found, currency=currency or prices.currency, as_of=as_of, source=source)


def parse_money(text: str) -> Decimal:
    """An amount of money as a plain decimal. InvalidInput for anything else."""
    if not _PRICE.fullmatch(text) or Decimal(text) > _MAX_PRICE:
        raise InvalidInput(f"{text[:40]!r} is no amount of money", hint="Write a plain number, like 20 or 0.023.")
    return Decimal(text)


def as_document(prices: PriceList) -> dict[str, str]:
    """The list as plain text values, for a database or an answer."""
    numbers = {name: format(getattr(prices, name), "f") for name in PRICES}
    return numbers | {"currency": prices.currency, "as_of": prices.as_of, "source": prices.source}


def from_document(document: Mapping[str, str]) -> PriceList:
    """The inverse of :func:`as_document`."""
    numbers = {name: Decimal(document[name]) for name in PRICES}
    return PriceList(**numbers, currency=document["currency"], as_of=document["as_of"], source=document["source"])
