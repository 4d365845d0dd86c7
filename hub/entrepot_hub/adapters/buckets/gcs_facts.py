"""What Google tells of a bucket, in the words of :class:`~entrepot_hub.adapters.buckets.interface.Facts`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from google.api_core import exceptions as api

from entrepot_hub.adapters.buckets.gcs_errors import missing_bucket, permission_in
from entrepot_hub.adapters.buckets.gcs_link import GcsLink, nonsense
from entrepot_hub.adapters.buckets.gcs_settings import GcsSettings
from entrepot_hub.adapters.buckets.interface import Facts

#: What the bucket's own record tells.
_OF_THE_RECORD: Final = ("region", "versioning", "soft_delete", "object_lock", "lifecycle", "storage_class", "cors")
#: Whoever stands for anybody in a policy or a list.
ANYBODY: Final = frozenset({"allUsers", "allAuthenticatedUsers"})
_READ: Final = frozenset(
    f"roles/storage.{name}"
    for name in ("admin", "objectAdmin", "objectUser", "objectViewer", "legacyObjectReader", "legacyObjectOwner")
)
_WRITE: Final = frozenset(
    f"roles/storage.{name}"
    for name in ("admin", "objectAdmin", "objectUser", "objectCreator", "legacyBucketWriter", "legacyBucketOwner")
)
_HARMLESS: Final = frozenset({"roles/storage.legacyBucketReader", "roles/storage.bucketViewer"})
#: Conditions of lifecycle rules that no object of ours ever meets while it is the one that is read.
_OF_OLD_VERSIONS: Final = ("numNewerVersions", "daysSinceNoncurrentTime", "noncurrentTimeBefore")
_OF_CUSTOM_TIMES: Final = ("daysSinceCustomTime", "customTimeBefore")


def examine(link: GcsLink, settings: GcsSettings) -> Facts:
    """Ask for everything that the account may see. Blocks. Raises the client's errors where nothing can be asked."""
    base = f"/storage/v1/b/{settings.bucket}"
    unknown: dict[str, str] = {}

    def ask(path: str, permission: str, *facts: str, **params: str) -> Mapping[str, Any] | None:
        try:
            return link.ask("GET", base + path, params=params).fields()
        except api.Forbidden as error:
            unknown.update(dict.fromkeys(facts, f"it takes {permission_in(error) or permission}"))
        except api.NotFound as error:
            if not path:
                raise missing_bucket(settings.bucket) from error
            unknown.update(dict.fromkeys(facts, "Google does not say"))
        return None

    try:
        return _examine(ask, link.skew(), settings.prefix, unknown)
    except (AttributeError, TypeError, ValueError) as error:
        # Every field may be anything, where something else than Google answers.
        raise nonsense() from error


def _examine(
    ask: Callable[..., Mapping[str, Any] | None], skew: float | None, prefix: str, unknown: dict[str, str]
) -> Facts:
    facts = Facts(clock_skew=skew, unknown=unknown)
    if skew is None:
        unknown["clock_skew"] = "answers carry no date"
    record = ask("", "storage.buckets.get", *_OF_THE_RECORD)
    if record is not None:
        facts = _from_record(facts, record, prefix)
        if never_public(record):
            return replace(facts, public_read=False, public_write=False)
    policy = ask(
        "/iam", "storage.buckets.getIamPolicy", "public_read", "public_write", optionsRequestedPolicyVersion="3"
    )
    if policy is None:
        return facts
    public_read, public_write = public_by_policy(policy)
    if public_read is False and (record is None or has_lists(record)):
        lists = ask("/defaultObjectAcl", "storage.buckets.getIamPolicy", "public_read")
        public_read = None if lists is None else public_by_list(lists.get("items") or ())
    for name, value in (("public_read", public_read), ("public_write", public_write)):
        if value is None:
            unknown.setdefault(name, "anybody has a role of the owner's own making")
    return replace(facts, public_read=public_read, public_write=public_write)


def _from_record(facts: Facts, record: Mapping[str, Any], prefix: str) -> Facts:
    autoclass = bool((record.get("autoclass") or {}).get("enabled"))
    return replace(
        facts,
        region=record.get("location"),
        versioning=bool((record.get("versioning") or {}).get("enabled")),
        soft_delete=float((record.get("softDeletePolicy") or {}).get("retentionDurationSeconds") or 0),
        object_lock=locks_by_default(record),
        lifecycle=lifecycle_in_words((record.get("lifecycle") or {}).get("rule") or (), prefix),
        storage_class=f"{record.get('storageClass')}{' (autoclass)' if autoclass else ''}",
        cors=bool(record.get("cors")),
    )


def lifecycle_in_words(rules: Iterable[Mapping[str, Any]], prefix: str) -> tuple[str, ...]:
    """The rules that would remove or move objects below ``prefix``, each in words."""
    return tuple(words for rule in rules if (words := _rule_in_words(rule, prefix)) is not None)


def _rule_in_words(rule: Mapping[str, Any], prefix: str) -> str | None:
    action: Mapping[str, Any] = rule.get("action") or {}
    condition: Mapping[str, Any] = rule.get("condition") or {}
    match action.get("type"):
        case "Delete":
            words = "deletes objects"
        case "SetStorageClass":
            words = f"moves objects to {action.get('storageClass', 'another class')}"
        case "AbortIncompleteMultipartUpload":
            return None
        case other:
            words = f"does {other!s:.50} to objects"
    if condition.get("isLive") is False or any(condition.get(name) for name in (*_OF_OLD_VERSIONS, *_OF_CUSTOM_TIMES)):
        return None
    prefixes = [str(found) for found in condition.get("matchesPrefix") or ()]
    if prefixes and not any(found.startswith(prefix) or prefix.startswith(found) for found in prefixes):
        return None
    when = []
    if "age" in condition:
        when.append(f"after {condition['age']} days")
    if "createdBefore" in condition:
        when.append(f"if made before {condition['createdBefore']}")
    if condition.get("matchesStorageClass"):
        when.append(f"of class {', '.join(map(str, condition['matchesStorageClass']))}")
    if condition.get("matchesSuffix"):
        when.append(f"ending in {', '.join(map(str, condition['matchesSuffix']))}")
    if prefixes:
        when.append(f"below {', '.join(prefixes)}")
    return " ".join([words, *when])


def locks_by_default(resource: Mapping[str, Any]) -> bool:
    """Whether new objects cannot be deleted for a while, by a retention policy or by a hold."""
    policy = resource.get("retentionPolicy") or {}
    return int(policy.get("retentionPeriod") or 0) > 0 or bool(resource.get("defaultEventBasedHold"))


def never_public(resource: Mapping[str, Any]) -> bool:
    """Whether public access is prevented whatever the policy says."""
    return bool((resource.get("iamConfiguration") or {}).get("publicAccessPrevention") == "enforced")


def has_lists(resource: Mapping[str, Any]) -> bool:
    """Whether objects have access lists of their own (no uniform bucket-level access)."""
    uniform = (resource.get("iamConfiguration") or {}).get("uniformBucketLevelAccess") or {}
    return not uniform.get("enabled")


def public_by_policy(policy: Mapping[str, Any]) -> tuple[bool | None, bool | None]:
    """Whether anybody may read, and whether anybody may write; ``None`` if a role of the owner's own may allow it."""
    roles = {
        str(binding.get("role"))
        for binding in policy.get("bindings") or ()
        if ANYBODY & set(binding.get("members") or ())
    }
    unknown = bool(roles - _READ - _WRITE - _HARMLESS)
    return (
        True if roles & _READ else None if unknown else False,
        True if roles & _WRITE else None if unknown else False,
    )


def public_by_list(entries: Iterable[Mapping[str, Any]]) -> bool:
    """Whether anybody may read objects by the list that new ones get."""
    return any(entry.get("entity") in ANYBODY for entry in entries)
