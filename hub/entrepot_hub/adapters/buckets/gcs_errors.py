"""What google-cloud-storage and the layers below it raise, as our errors."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Iterator
from typing import Any, Final

import requests
import urllib3.exceptions
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot_hub.adapters.buckets.answers import word_of
from entrepot_hub.adapters.buckets.causes import cause_of

#: What the token endpoint says when the time in a signed request is not its own.
_SKEWED: Final = ("reasonable timeframe", "iat and exp", "issued at time")
#: Reasons in a 403 that are about how much, not about who.
_BUSY: Final = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"})
#: Google says the same 404 of an object and of its bucket, but for the words.
_NO_BUCKET: Final = "the specified bucket does not exist"
#: Reasons in a 403 that are about objects that must stay. A hold has been seen to be told in words only.
_KEPT: Final = frozenset({"retentionPolicyNotMet", "objectUnderActiveHold"})
_HELD = re.compile(r"is under active \S+ hold")
_PERMISSION = re.compile(r"storage\.[a-z]{1,20}\.[A-Za-z]{1,36}\b|iam\.serviceAccounts\.[A-Za-z]{1,36}\b")
_IAM_STATUS = re.compile(r'"code"\s*:\s*(\d{3})')


@contextlib.contextmanager
def translation(bucket: str) -> Iterator[None]:
    """The one place where the errors of Google's libraries and of what they stand on become ours."""
    try:
        yield
    except EntrepotError:
        raise
    # Not chained: what the libraries say may be the endpoint's own words, and those are not for logs.
    except api.RetryError as error:
        # Given up after several tries: why, says the last of them.
        last = error.cause
        raise (
            _from_answer(last, bucket) if isinstance(last, api.GoogleAPICallError) else _away(error, bucket)
        ) from None
    except api.GoogleAPICallError as error:
        raise _from_answer(error, bucket) from None
    except InvalidResponse as error:
        answer = api.from_http_response(error.response)  # type: ignore[no-untyped-call]
        raise _from_answer(answer, bucket) from None
    except auth.GoogleAuthError as error:
        raise _from_auth(error, bucket) from None
    except DataCorruption:
        raise RetryLater(
            "bytes were damaged on their way to the bucket", kind="bucket-unreachable", bucket=bucket
        ) from None
    except (
        api.GoogleAPIError,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        OSError,
    ) as error:
        raise _away(error, bucket) from None
    except (ValueError, RecursionError) as error:
        # Neither json nor the library says more about an answer that it cannot read.
        raise RetryLater(
            f"what answers at the bucket's endpoint does not make sense: {type(error).__name__}",
            kind="bucket-unreachable",
            hint="Is it Google Cloud Storage?",
            bucket=bucket,
        ) from None


def is_missing_bucket(error: api.NotFound) -> bool:
    """Whether a 404 is about the bucket and not about an object in it."""
    return _NO_BUCKET in _told(error).lower()


def permission_in(error: BaseException) -> str | None:
    """The permission that a denial names, for example "storage.objects.list"."""
    found = _PERMISSION.search(_told(error) if isinstance(error, api.GoogleAPICallError) else str(error))
    return None if found is None else found.group()


def missing_bucket(bucket: str) -> InvalidInput:
    """There is no such bucket."""
    return InvalidInput(
        f"there is no bucket {bucket!r} on Google Cloud Storage",
        kind="invalid-setting",
        hint="Create it, or let the hub create it",
        bucket=bucket,
    )


def _away(error: BaseException, bucket: str) -> RetryLater:
    cause = cause_of(error)
    return RetryLater(
        f"the bucket cannot be reached: {cause}",
        kind="bucket-unreachable",
        bucket=bucket,
        cause=cause,
    )


def _from_answer(error: api.GoogleAPICallError, bucket: str) -> EntrepotError:
    status = int(error.code or 500)
    reason = _reason(error)
    about: dict[str, Any] = {"bucket": bucket, "status": status, "code": reason}
    match status:
        case 401:
            return _wrong_key(about)
        case 403 if reason in _BUSY:
            return RetryLater(f"the bucket is busy: {reason}", kind="busy", **about)
        case 403 if reason in _KEPT or _HELD.search(_told(error)):
            return Denied(
                "the bucket keeps its objects by a retention policy or a hold",
                hint="A bucket for entrepot has neither: what is evicted has to go",
                **about,
            )
        case 403:
            permission = permission_in(error)
            return Denied(
                "the bucket denies this to the hub's service account"
                + (f": it lacks {permission}" if permission else ""),
                hint="It needs storage.objects.create, get and delete and, for reconciliation, list "
                "(the role Storage Object User has them all)",
                **about,
            )
        case 404 if isinstance(error, api.NotFound) and is_missing_bucket(error):
            return missing_bucket(bucket)
        case 404:
            return NotFound("there is no such object", kind="no-such-object", **about)
        case 412:
            return Conflict("the object was replaced or removed", kind="changed", **about)
        case 409 | 429 | 503:
            return RetryLater(f"the bucket is busy: {reason}", kind="busy", **about)
        case 507:
            return RetryLater("the bucket is full", kind="disk-full", **about)
        case _ if status >= 500 or status == 408:
            return RetryLater(f"the bucket is out of order: {reason}", kind="bucket-unreachable", **about)
        case _ if status < 300:
            # An answer that the library took for a failure though its status is none: half of one, or nonsense.
            return RetryLater("the bucket answers with something else", kind="bucket-unreachable", **about)
        case _:
            return InvalidInput(f"the bucket refuses the request: {reason}", kind="invalid-setting", **about)


def _from_auth(error: auth.GoogleAuthError, bucket: str) -> EntrepotError:
    text = str(error)
    about: dict[str, Any] = {"bucket": bucket}
    if isinstance(error, auth.MalformedError):
        return InvalidInput("the key of the service account cannot be read", kind="invalid-setting", **about)
    if isinstance(error, auth.DefaultCredentialsError):
        return InvalidInput(
            "this machine has no Google identity",
            kind="invalid-setting",
            hint="Give the key of a service account, or run the hub where workload identity is set up",
            **about,
        )
    if any(part in text for part in _SKEWED):
        return Denied(
            "Google's clock and the hub's differ too much", kind="clock-skew", hint="Set the hub's clock", **about
        )
    if isinstance(error, auth.TransportError):
        status = _IAM_STATUS.search(text)
        if status is not None and 400 <= int(status.group(1)) < 500:
            return Denied(
                "the hub may not sign as its service account",
                hint="It needs iam.serviceAccounts.signBlob on itself (the role Service Account Token Creator)",
                status=int(status.group(1)),
                **about,
            )
        return _away(error, bucket)
    if error.retryable:
        return _away(error, bucket)
    return _wrong_key(about)


def _wrong_key(about: dict[str, Any]) -> Denied:
    return Denied("Google does not accept the hub's key", hint="Give the hub a valid key of a service account", **about)


def _reason(error: api.GoogleAPICallError) -> str:
    """One word for what went wrong, the status if Google says none."""
    for found in error.errors or _errors_in(error.response):
        if isinstance(found, dict) and (reason := word_of(found.get("reason"))):
            return reason
    return str(error.code)


def _errors_in(answer: object) -> list[Any]:
    """The list of errors in the body of an answer: the client leaves it out when an upload was refused."""
    if not isinstance(answer, requests.Response):
        return []
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found = answer.json()["error"]["errors"]
        return found if isinstance(found, list) else []
    return []


def _told(error: api.GoogleAPICallError) -> str:
    """All that Google says, as far as it is worth reading."""
    body = error.response.content[:4000] if isinstance(error.response, requests.Response) else b""
    return f"{error.message} {body.decode('utf-8', 'replace')}"[:4000]
