"""What a doctor says of a bucket: one line for each thing looked at, with what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from entrepot.core.errors import InvalidInput
from entrepot.core.units import format_size, spell_duration
from entrepot_hub.adapters.buckets.interface import Binds, Facts
from entrepot_hub.adapters.buckets.location import FolderLocation, parse_location
from entrepot_hub.services.administration import ChannelCreate, MadeChannel
from entrepot_hub.services.desk import Desk, Operation, Request, View

#: From best to worst. "unknown": could not be looked at, and the line says why.
type Outcome = Literal["ok", "note", "unknown", "warning", "failure"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("ok", "note", "unknown", "warning", "failure")

#: The quota should hold the largest stream so many times over: readers of two streams then leave each other room.
ROOM: Final = 3
_SKEW_NOTE: Final = 30.0  # seconds: signatures still hold, leases and dates already look odd
_SKEW_FATAL: Final = 300.0  # the providers' own limits lie between five and fifteen minutes
_SLOW: Final = 1.0  # seconds for one look at an object

#: Storage classes from which a cache costs more than it saves: minimum durations, fees for each read.
_DEAR: Final = frozenset(
    {"archive", "coldline", "cool", "cold", "deep_archive", "glacier", "glacier_ir", "nearline", "onezone_ia",
     "standard_ia"}
)  # fmt: skip

#: What is bound: what it means when it is not, and whether that is worth a warning.
_BOUND: Final[Mapping[str, tuple[str, str, Outcome, str]]] = {
    "length": (
        "an upload has the granted length or fails",
        "uploads of another length are taken",
        "warning",
        "The quota is detected, not guaranteed: the hub measures each object when it is reported and removes what is "
        "not as granted. Invite only nodes you trust not to fill the bucket.",
    ),
    "digest": (
        "an upload has the granted digest or fails",
        "uploads of other bytes than granted are taken",
        "note",
        "Readers verify every byte all the same; whom to blame for a bad object is a guess.",
    ),
    "create_only": (
        "an upload never replaces anything, not even a tombstone",
        "a URL can be used again and replaces what is there",
        "warning",
        "A late upload may come back after an eviction and is not counted until the next comparison; the hub compares "
        "daily, or run: entrepot-hub channel reconcile.",
    ),
    "expiry": (
        "a URL ends when it says",
        "a URL works after its end",
        "warning",
        "Revoking a node does not end the URLs it was given. Is the provider's clock right?",
    ),
    "head_digest": (
        "the digest of what arrived is shown",
        "the digest of what arrived is not shown",
        "note",
        "The hub reads the header of each object instead: one more request for each.",
    ),
    "get_if": (
        "a download gives the object it was signed for or fails",
        "a download may give what replaced the object",
        "note",
        "Readers compare the ETag, and verify every byte.",
    ),
    "delete_if": (
        "an object is deleted only while it is what was seen",
        "the hub looks before it deletes",
        "note",
        "Something written in between is lost: nodes upload it again.",
    ),
    "replace_if": (
        "an object is replaced only while it is what was seen",
        "the hub looks before it replaces",
        "note",
        "Something written in between is lost: nodes upload it again.",
    ),
}


class Check(View, frozen=True, kw_only=True):
    """One thing that was looked at: its ``name`` in a word or two, how it is, a sentence, and what mends it."""

    name: str
    outcome: Outcome
    text: str
    mend: str | None = None


class Diagnosis(View, frozen=True, kw_only=True):
    """All that was looked at, and what the provider was found to bind."""

    channel: str
    bucket: str
    checks: list[Check]
    binds: dict[str, bool]

    @property
    def worst(self) -> Outcome:
        """The worst outcome of all."""
        return max((check.outcome for check in self.checks), key=OUTCOMES.index, default="ok")


class Diagnose(Request, frozen=True, kw_only=True):
    """Look at a channel's bucket. ``probe``: try uploads too (a few seconds), else only look."""

    name: Annotated[str, msgspec.Meta(max_length=64)]
    probe: bool = True


class PolicyAsked(Request, frozen=True, kw_only=True):
    """What the provider of a bucket has to allow, for its URL or for a channel's bucket."""

    bucket: Annotated[str, msgspec.Meta(max_length=2000)]
    listing: bool = True


class PolicyView(View, frozen=True, kw_only=True):
    """A policy: a document for the provider, or commands; and what does not work with it."""

    provider: str
    document: dict[str, Any] | None
    commands: list[str]
    lost: list[str]


def of_binds(binds: Binds, *, tried: bool = True) -> list[Check]:
    """What the provider holds of each thing that a grant binds. ``tried``: just now, else it is what was found then."""
    checks, since = [], "" if tried else ", as found before"
    for name, (holds, fails, outcome, mend) in _BOUND.items():
        words = name.replace("_", " ")
        if getattr(binds, name):
            checks.append(Check(name=words, outcome="ok", text=holds + since))
        else:
            checks.append(Check(name=words, outcome=outcome, text=fails + since, mend=mend))
    return checks


def of_facts(facts: Facts, *, public_read: bool, region: str | None) -> list[Check]:
    """How the bucket is set up. ``public_read``: what the channel declares; ``region``: what its URL says."""
    checks = [*_clock(facts), *_public(facts, declared=public_read), *_kept(facts)]
    if facts.lifecycle:
        checks.append(
            Check(
                name="lifecycle",
                outcome="warning",
                text=f"rules remove or move objects: {'; '.join(facts.lifecycle)}",
                mend="Exempt the channel's prefix: the hub decides what leaves, and counts on what it knows.",
            )
        )
    elif facts.lifecycle is not None:
        checks.append(Check(name="lifecycle", outcome="ok", text="no rule touches the channel's objects"))
    if facts.storage_class is not None:
        dear = facts.storage_class.lower().replace("-", "_") in _DEAR
        checks.append(
            Check(
                name="storage class",
                outcome="warning" if dear else "ok",
                text=f"objects are stored as {facts.storage_class}",
                mend="Use the standard class: others bill a minimum time and each read." if dear else None,
            )
        )
    if facts.region is not None:
        other = region is not None and region not in {"auto", facts.region}
        checks.append(
            Check(
                name="region",
                outcome="warning" if other else "ok",
                text=f"the bucket is in {facts.region}" + (f", the URL says {region}" if other else ""),
                mend=f"Put region={facts.region} into the bucket's URL." if other else None,
            )
        )
    if facts.cors is not None:
        text = "browsers of other sites may read" if facts.cors else "browsers of other sites may not read"
        checks.append(Check(name="cors", outcome="ok", text=f"{text}; nodes need nothing of it"))
    checks += [
        Check(name=name.replace("_", " "), outcome="unknown", text=f"not known: {'; '.join(_reasons(why))}")
        for name, why in sorted(facts.unknown.items())
    ]
    return checks


def _reasons(text: str) -> list[str]:
    """Reasons that a driver joined, each once; one that another one says in more words is left out."""
    parts = list(dict.fromkeys(text.split("; ")))
    return [part for part in parts if not any(other != part and other.startswith(part) for other in parts)]


def of_quota(quota: int, largest: int, object_size: int) -> Check:
    """Whether the quota leaves readers room. ``largest``: bytes of the largest stream that was ever asked for."""
    if not largest:
        return Check(name="quota", outcome="ok", text=f"{format_size(quota)}; no stream was asked for yet")
    if quota >= ROOM * largest:
        return Check(
            name="quota", outcome="ok", text=f"{format_size(quota)} for streams of up to {format_size(largest)}"
        )
    text = f"{format_size(quota)} is less than {ROOM} times the largest stream, {format_size(largest)}"
    if quota < largest:
        text += "; such a stream flows through piece by piece"
    unit = max(object_size, 1)
    advised = -(-ROOM * largest // unit) * unit
    return Check(
        name="quota",
        outcome="note",
        text=text,
        mend=f"With {format_size(advised)} readers would not wait for each other.",
    )


def of_held(held: int, held_until: float | None, quota: int, now: float) -> list[Check]:
    """Whether much of the quota is held back after a rebuilding. ``held_until`` in unix seconds, as ``now``."""
    if not held:
        return []
    ends = "" if held_until is None else f" for {spell_duration(max(held_until - now, 0.0))}"
    text = f"{format_size(held)} of {format_size(quota)} are held back{ends}, for uploads from before the rebuild"
    mend = (
        "It ends by itself. Whoever waits for room until then is helped by a larger quota: entrepot-hub channel quota."
    )
    return [Check(name="held back", outcome="note", text=text, mend=mend)]


def of_latency(seconds: float) -> Check:
    """How long the hub waits for one look at an object."""
    text = f"a look at an object takes {seconds * 1000:.0f} ms"
    if seconds < _SLOW:
        return Check(name="latency", outcome="ok", text=text)
    return Check(
        name="latency",
        outcome="warning",
        text=text,
        mend="Each object costs the hub two looks: a hub nearer to the bucket makes every transfer begin sooner.",
    )


def _clock(facts: Facts) -> list[Check]:
    if facts.clock_skew is None:
        return []
    off = abs(facts.clock_skew)
    direction = "behind" if facts.clock_skew > 0 else "ahead of"
    if off < _SKEW_NOTE:
        return [Check(name="clock", outcome="ok", text="the hub's clock and the provider's agree")]
    return [
        Check(
            name="clock",
            outcome="failure" if off >= _SKEW_FATAL else "warning",
            text=f"the hub's clock is {spell_duration(off)} {direction} the provider's",
            mend="Let the hub's machine keep its time by NTP: signed URLs die or are refused.",
        )
    ]


def _public(facts: Facts, *, declared: bool) -> list[Check]:
    checks = []
    if facts.public_write:
        checks.append(
            Check(
                name="public write",
                outcome="failure",
                text="anybody may write into the bucket",
                mend="Take the public's right to write away: no quota and no grant means anything with it.",
            )
        )
    elif facts.public_write is not None:
        checks.append(Check(name="public write", outcome="ok", text="nobody writes without a signature"))
    if facts.public_read is None:
        return checks
    if facts.public_read == declared:
        text = "anybody may read, as the channel declares" if declared else "nobody reads without a signature"
        checks.append(Check(name="public read", outcome="ok", text=text))
    elif facts.public_read:
        checks.append(
            Check(
                name="public read",
                outcome="failure",
                text="anybody may read the bucket, but the channel is not declared public",
                mend="Make the bucket private, or declare the channel public when it is made: --public-read.",
            )
        )
    else:
        checks.append(
            Check(
                name="public read",
                outcome="warning",
                text="the channel is declared public, but the bucket is private",
                mend="Let the public read the channel's prefix at the provider; nodes ask the hub until then.",
            )
        )
    return checks


def _kept(facts: Facts) -> list[Check]:
    """What the provider keeps, and bills, of what was deleted."""
    checks = []
    if facts.versioning:
        checks.append(
            Check(
                name="versioning",
                outcome="warning",
                text="deleted and replaced objects are kept as versions, beyond the quota and on the bill",
                mend="Suspend versioning, or let a lifecycle rule expire noncurrent versions after a day.",
            )
        )
    elif facts.versioning is not None:
        checks.append(Check(name="versioning", outcome="ok", text="deleted objects are gone"))
    if facts.soft_delete:
        checks.append(
            Check(
                name="soft delete",
                outcome="warning",
                text=f"deleted objects are kept, and billed, for {spell_duration(facts.soft_delete)}",
                mend="Switch soft delete off for this bucket: a cache deletes much.",
            )
        )
    elif facts.soft_delete is not None:
        checks.append(Check(name="soft delete", outcome="ok", text="nothing is kept of what is deleted"))
    if facts.object_lock:
        checks.append(
            Check(
                name="object lock",
                outcome="failure",
                text="objects are locked against deletion: nothing could ever make room",
                mend="Use a bucket without object lock or retention.",
            )
        )
    elif facts.object_lock is not None:
        checks.append(Check(name="object lock", outcome="ok", text="objects can be deleted"))
    return checks


class ExaminedChannel(MadeChannel, frozen=True, kw_only=True):
    """A channel that was asked for, and what is not well about its bucket."""

    checks: list[Check] = msgspec.field(default_factory=list)


async def create(desk: Desk, asked: ChannelCreate, actor: str) -> ExaminedChannel:
    """See :meth:`Administration.create_channel`; a new one's bucket is looked at by the doctor."""
    place = parse_location(asked.bucket)
    if isinstance(place, FolderLocation) and desk.settings.folder.is_relative_to(place.path):
        raise InvalidInput(
            f"{place.path} holds the hub's own folder: its keys and its database do not belong into a bucket",
            kind="invalid-setting",
            hint="Name a folder of its own.",
        )
    made = await desk.administration.create_channel(asked, actor)
    checks: list[Check] = []
    if made.made:
        from entrepot_hub.services.doctor import Doctor

        found = await Doctor(desk).diagnose(Diagnose(name=made.name, probe=False), actor, tried=True)
        checks = [check for check in found.checks if check.outcome != "ok"]
    return ExaminedChannel(**msgspec.structs.asdict(made), checks=checks)


async def diagnose(desk: Desk, asked: Diagnose, actor: str) -> Diagnosis:
    """Look at the bucket of a channel; NotFound (``no-such-channel``)."""
    from entrepot_hub.services.doctor import Doctor

    return await Doctor(desk).diagnose(asked, actor)


async def policy(desk: Desk, asked: PolicyAsked, _actor: str) -> PolicyView:
    """What the provider has to allow. InvalidInput (``invalid-setting``) for what is no bucket's URL."""
    from entrepot_hub.services.doctor import policy_of

    return await policy_of(desk, asked)


#: What can be asked for.
OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {
    "channel.create": Operation(ChannelCreate, ExaminedChannel, create),
    "channel.doctor": Operation(Diagnose, Diagnosis, diagnose),
    "bucket.policy": Operation(PolicyAsked, PolicyView, policy),
}
