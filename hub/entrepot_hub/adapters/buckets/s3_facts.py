"""How an S3 bucket is set up, as far as its provider tells: :class:`Facts` from a dozen small questions."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import secrets
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from entrepot_hub.adapters.buckets.interface import Facts
from entrepot_hub.adapters.buckets.s3_calls import mark_of
from entrepot_hub.adapters.buckets.s3_errors import ENDED_KEYS, NONSENSE, WRONG_KEYS, code_of, status_of
from entrepot_hub.adapters.buckets.s3_retries import Tries
from entrepot_hub.adapters.buckets.s3_settings import S3Settings
from entrepot_hub.adapters.buckets.s3_transport import Sockets, quotable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_EVERYBODY: Final = "http://acs.amazonaws.com/groups/global/AllUsers"
_READ: Final = frozenset({"READ", "FULL_CONTROL"})
_WRITE: Final = frozenset({"WRITE", "FULL_CONTROL"})


class Unknown(Exception):
    """Something that cannot be learned, and why."""


class Examination:
    """Asks everything once. Changes nothing, unless anybody may write: then what was tried is removed again.

    Raises what boto3 raises when the bucket cannot be reached or the keys are wrong.
    """

    def __init__(
        self, client: S3Client, settings: S3Settings, tries: Tries, clock: Callable[[], float], sockets: Sockets
    ) -> None:
        self._sockets = sockets
        self._client = client
        self._settings = settings
        self._tries = tries
        self._clock = clock
        self._unknown: dict[str, str] = {}
        self._skew: float | None = None

    def facts(self) -> Facts:
        """All that could be learned."""
        region = self._learn("region", self._region)
        if self._skew is None:
            self._unknown["clock_skew"] = "the bucket's answers bear no date"
        soft_delete = self._settings.traits.soft_delete
        if soft_delete is None:
            self._unknown["soft_delete"] = "this provider's S3 interface does not tell"
        return Facts(
            region=region,
            versioning=self._learn("versioning", self._versioning),
            soft_delete=soft_delete,
            object_lock=self._learn("object_lock", self._object_lock),
            lifecycle=self._learn("lifecycle", self._lifecycle),
            storage_class=self._learn("storage_class", self._storage_class),
            cors=self._learn("cors", self._cors),
            public_read=self._learn("public_read", self._public_read),
            public_write=self._learn("public_write", self._public_write),
            clock_skew=self._skew,
            unknown=self._unknown,
        )

    def _learn[T](self, name: str, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except Unknown as reason:
            self._unknown[name] = str(reason)
            return None

    def _ask(
        self, request: Callable[..., Any], permission: str, *absent: str, **fields: Any
    ) -> Mapping[str, Any] | None:
        """The answer; ``None`` for one of the codes that mean "nothing is set". Raises :class:`Unknown`."""
        try:
            answer: Mapping[str, Any] = self._tries.make(partial(request, Bucket=self._settings.bucket, **fields))
        except ClientError as error:
            code, status = code_of(error), status_of(error)
            if code in absent:
                return None
            if code in WRONG_KEYS | ENDED_KEYS or code == "NoSuchBucket":
                raise
            if status in {401, 403}:
                raise Unknown(f"the key lacks {permission}") from error
            if status in {400, 404, 405, 409, 501}:
                raise Unknown(f"the provider does not answer this ({code or status})") from error
            raise
        except NONSENSE as error:
            raise Unknown("the provider's answer makes no sense") from error
        return answer

    def _region(self) -> str | None:
        """Where it says that it is: by GetBucketLocation or, failing that, by a header of HeadBucket."""
        reason: Unknown | None = None
        location: Mapping[str, Any] | None = None
        try:
            location = self._dated(self._ask(self._client.get_bucket_location, "s3:GetBucketLocation"))
        except Unknown as unknown:
            reason = unknown
        try:
            head = self._dated(self._ask(self._client.head_bucket, "s3:ListBucket"))
        except Unknown:
            head = None
        told = head["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region") if head is not None else None
        if told and quotable(str(told)):
            return str(told)
        if location is None:
            raise reason or Unknown("the provider does not tell")
        place = location.get("LocationConstraint")
        # Amazon's first region has no name there, and its first European one an old one.
        region = {None: "us-east-1", "": "us-east-1", "EU": "eu-west-1"}.get(place, place)
        return _plain(region)

    def _dated(self, answer: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        text = answer["ResponseMetadata"]["HTTPHeaders"].get("date") if answer is not None else None
        if text and self._skew is None:
            with contextlib.suppress(ValueError, OverflowError):
                # The header has whole seconds: half of one is the best guess for what was cut off.
                self._skew = email.utils.parsedate_to_datetime(text).timestamp() + 0.5 - self._clock()
        return answer

    def _versioning(self) -> bool:
        answer = self._ask(self._client.get_bucket_versioning, "s3:GetBucketVersioning")
        return answer is not None and answer.get("Status") == "Enabled"

    def _object_lock(self) -> bool:
        answer = self._ask(
            self._client.get_object_lock_configuration,
            "s3:GetBucketObjectLockConfiguration",
            "ObjectLockConfigurationNotFoundError",
        )
        if answer is None:
            return False
        lock = _told(answer, "ObjectLockConfiguration")
        return _told(lock, "ObjectLockEnabled") == "Enabled" and bool(lock.get("Rule"))

    def _lifecycle(self) -> tuple[str, ...]:
        answer = self._ask(
            self._client.get_bucket_lifecycle_configuration,
            "s3:GetLifecycleConfiguration",
            "NoSuchLifecycleConfiguration",
        )
        rules = [] if answer is None else _told(answer, "Rules")
        return tuple(words for rule in rules for words in _words(rule, self._settings.prefix))

    def _storage_class(self) -> str:
        mark = mark_of(self._settings.prefix)
        answer = self._ask(self._client.head_object, "s3:GetObject", "404", "NoSuchKey", Key=mark)
        if answer is None:
            raise Unknown("the owner's mark is not there yet")
        return _plain(answer.get("StorageClass") or "STANDARD")

    def _cors(self) -> bool:
        answer = self._ask(self._client.get_bucket_cors, "s3:GetBucketCORS", "NoSuchCORSConfiguration")
        rules = [] if answer is None else _told(answer, "CORSRules")
        return any("GET" in rule.get("AllowedMethods", []) for rule in rules)

    def _public_read(self) -> bool:
        """By asking for the owner's mark as anybody would; where it is not there, by what the provider tells."""
        status = self._bare("GET", mark_of(self._settings.prefix))
        if status in {200, 206}:
            return True
        if status in {401, 403} and self._mark_is_there():
            return False
        return self._told_public(_READ)

    def _public_write(self) -> bool:
        """By writing an empty object as anybody would; what is taken is removed."""
        prefix = self._settings.prefix
        name = f"probe-{secrets.token_hex(16)}"
        key = f"{prefix}/{name}" if prefix else name
        status = self._bare("PUT", key)
        if 200 <= status < 300:
            self._ask(self._client.delete_object, "s3:DeleteObject", Key=key)
            return True
        if status in {400, 401, 403, 405}:
            return False
        return self._told_public(_WRITE)

    def _mark_is_there(self) -> bool:
        try:
            mark = mark_of(self._settings.prefix)
            return self._ask(self._client.head_object, "s3:GetObject", "404", "NoSuchKey", Key=mark) is not None
        except Unknown:
            return False

    def _told_public(self, rights: frozenset[str]) -> bool:
        """By public access block, policy status and ACL. One that says yes is enough; for no all have to be known."""
        doubts: list[str] = []
        block: Mapping[str, Any] = {}
        try:
            answer = self._ask(
                self._client.get_public_access_block,
                "s3:GetBucketPublicAccessBlock",
                "NoSuchPublicAccessBlockConfiguration",
            )
            block = {} if answer is None else _told(answer, "PublicAccessBlockConfiguration")
        except Unknown as unknown:
            doubts.append(str(unknown))
        if block.get("IgnorePublicAcls") and block.get("RestrictPublicBuckets"):
            return False
        try:
            policy = self._ask(self._client.get_bucket_policy_status, "s3:GetBucketPolicyStatus", "NoSuchBucketPolicy")
            if policy is not None and _told(_told(policy, "PolicyStatus"), "IsPublic"):
                return True
        except Unknown as unknown:
            doubts.append(str(unknown))
        try:
            acl = self._ask(self._client.get_bucket_acl, "s3:GetBucketAcl")
            grants = [] if acl is None else _told(acl, "Grants")
            if any(g.get("Grantee", {}).get("URI") == _EVERYBODY and g.get("Permission") in rights for g in grants):
                return True
        except Unknown as unknown:
            doubts.append(str(unknown))
        if doubts:
            raise Unknown("; ".join(doubts))
        return False

    def _bare(self, method: str, key: str) -> int:
        """The status of a request that nobody signed; 0 when there is no answer."""
        parts = urlsplit(f"{self._settings.hub_base}/{key}")
        timeout = max(min(self._settings.read_timeout, self._tries.left), 0.1)
        if parts.scheme == "https":
            trusted = ssl.create_default_context(cafile=None if self._settings.ca is None else str(self._settings.ca))
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.netloc, timeout=timeout, context=trusted
            )
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
        try:
            headers = {"Content-Length": "0"} if method == "PUT" else {"Range": "bytes=0-0"}
            connection.connect()
            self._sockets.add(connection.sock)
            connection.request(method, parts.path, headers=headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()


def _told(answer: Mapping[str, Any], name: str) -> Any:
    """What an answer is about. A server that does not know the question answers another one, with a listing."""
    if name not in answer:
        raise Unknown("the provider does not answer this")
    return answer[name]


def _plain(word: Any) -> str:
    """A word of the provider's that is shown. Raises :class:`Unknown` for anything else."""
    if not quotable(str(word)):
        raise Unknown("the provider's answer makes no sense")
    return str(word)


def _words(rule: Mapping[str, Any], prefix: str) -> list[str]:
    """What a lifecycle rule would do to objects below the prefix, one sentence each. Ours bear no tags."""
    if rule.get("Status") != "Enabled":
        return []
    chosen = rule.get("Filter", {})
    both = chosen.get("And", {})
    if "Tag" in chosen or both.get("Tags"):
        return []
    begins = rule.get("Prefix") or chosen.get("Prefix") or both.get("Prefix") or ""
    ours = f"{prefix}/" if prefix else ""
    if not (begins.startswith(ours) or ours.startswith(begins)):
        return []
    name = f"rule {str(rule.get('ID') or '(without a name)')[:100]!a}"
    words = []
    if when := _when(rule.get("Expiration", {})):
        words.append(f"{name} removes objects {when}")
    words.extend(
        f"{name} moves objects to {_plain(move.get('StorageClass', 'another'))} {_when(move)}"
        for move in rule.get("Transitions", [])
    )
    return words


def _when(action: Mapping[str, Any]) -> str:
    if "Days" in action:
        return f"after {action['Days']} days"
    if "Date" in action:
        return f"from {action['Date']:%Y-%m-%d} on"
    return ""
