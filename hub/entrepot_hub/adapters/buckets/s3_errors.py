"""What boto3 and the layers below it raise, as our errors, and which of it may be tried again."""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Iterator
from typing import Any, Final
from xml.etree.ElementTree import ParseError

import urllib3.exceptions
from botocore.exceptions import (
    BotoCoreError,
    ChecksumError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError

from entrepot.core.errors import Conflict, Denied, EntrepotError, Internal, InvalidInput, NotFound, RetryLater
from entrepot_hub.adapters.buckets.causes import cause_of

#: The keys themselves are refused, whatever is asked.
WRONG_KEYS: Final = frozenset(
    {
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidToken",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
    }
)
#: Temporary keys that ended.
ENDED_KEYS: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})

_AGAIN: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_NEVER: Final = frozenset({501, 505, 507})
_AGAIN_CODES: Final = frozenset(
    {"ConditionalRequestConflict", "OperationAborted", "IncompleteBody", "RequestTimeout", "SlowDown", "Throttling"}
)
#: An answer that is no XML, not all of it, or nested without measure.
NONSENSE: Final = (ResponseParserError, ParseError, RecursionError)
#: What goes wrong on the way, or with the answer.
_ON_THE_WAY: Final = (
    NoConnection,
    HTTPClientError,
    IncompleteReadError,
    *NONSENSE,
    urllib3.exceptions.HTTPError,
    OSError,
)
#: Those whose text may repeat what the endpoint said: a line, a header, a number or a date that is none.
_FOREIGN: Final = (
    *NONSENSE,
    HTTPClientError,
    ChecksumError,
    FlexibleChecksumError,
    urllib3.exceptions.HTTPError,
    ValueError,
    OverflowError,
)
#: The most seconds that a server's Retry-After is believed.
_MAX_AFTER: Final = 3600.0


@contextlib.contextmanager
def translation(bucket: str) -> Iterator[None]:
    """The one place where the errors of boto3 and of what it stands on become ours."""
    try:
        yield
    except EntrepotError:
        raise
    except ClientError as error:
        raise _from_answer(error, bucket) from error
    except _FOREIGN as error:
        # What these say may be the endpoint's words, or all of its answer: it is not even kept as the cause.
        cause = _cause(error)
        raise RetryLater(
            f"the bucket cannot be reached, or its answer makes no sense: {cause}",
            kind="bucket-unreachable",
            bucket=bucket,
            cause=cause,
        ) from None
    except _ON_THE_WAY as error:
        untrusted = isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
        cause = _cause(error)
        raise RetryLater(
            f"the bucket cannot be reached: {cause}",
            kind="bucket-unreachable",
            hint="Does its certificate come from a private authority? The hub has to be told its file"
            if untrusted
            else None,
            bucket=bucket,
            cause=cause,
        ) from error
    except BotoCoreError as error:
        raise Internal(f"a request to the bucket was not well-formed: {str(error)[:300]}", bucket=bucket) from error


@contextlib.contextmanager
def keys_translation(bucket: str) -> Iterator[None]:
    """The same for what is raised while keys are looked for, or a role is assumed."""
    try:
        with translation(bucket):
            yield
    except Denied as error:
        if error.data.get("code") != "AccessDenied":
            raise
        raise Denied(
            "the hub may not assume the role",
            hint="Check the role's name, its trust policy and the external id",
            bucket=bucket,
        ) from error
    except Internal as error:
        # A profile that is missing or half, a metadata service that says nonsense.
        raise _no_keys(str(error.__cause__), bucket) from error
    except EntrepotError:
        raise
    except Exception as error:
        # What botocore's providers meet is raised bare: RuntimeError for keys that came already ended, KeyError, …
        raise _no_keys(f"{type(error).__name__}: {error}", bucket) from error


def setback(error: BaseException) -> float | None:
    """Whether the same request may succeed in a moment: the seconds for which the server asks to wait, 0.0 if it asks
    for none; ``None`` if it makes no sense."""
    if isinstance(error, ClientError):
        status, code = status_of(error), code_of(error)
        again = status in _AGAIN or code in _AGAIN_CODES or (status > 504 and status not in _NEVER)
        return (retry_after(error) or 0.0) if again else None
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return None
    return 0.0 if isinstance(error, _ON_THE_WAY) else None


def _from_answer(error: ClientError, bucket: str) -> EntrepotError:
    code, status = code_of(error), status_of(error)
    about: dict[str, Any] = {"bucket": bucket, "status": status, "code": code}
    if (after := retry_after(error)) is not None:
        about["after"] = after
    if code == "NoSuchBucket":
        return InvalidInput(f"there is no bucket {bucket!r} at this endpoint", kind="invalid-setting", **about)
    if code == "RequestTimeTooSkewed":
        return Denied(
            "the bucket's clock and the hub's differ too much", kind="clock-skew", hint="Set the hub's clock", **about
        )
    if code in {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}:
        return InvalidInput(
            "the bucket is in another region", kind="invalid-setting", hint="State its region in its URL", **about
        )
    if code in WRONG_KEYS:
        return Denied("the bucket does not accept the hub's key", hint="Give the hub a valid key pair", **about)
    if code in ENDED_KEYS:
        return Denied(
            "the hub's temporary keys for the bucket have ended",
            kind="expired",
            hint="Give the hub new keys, or a role that it can assume again",
            **about,
        )
    match status:
        case 404:
            return NotFound("there is no such object", kind="no-such-object", **about)
        case 401 | 403:
            return Denied(
                "the bucket denies this to the hub's key",
                hint="The key needs GetObject, PutObject, DeleteObject and, for reconciliation, ListBucket",
                **about,
            )
        case 412:
            return Conflict("the object was replaced or removed", kind="changed", **about)
        case 409 | 429 | 503:
            return RetryLater(f"the bucket is busy: {code}", kind="busy", **about)
        case 507:
            return RetryLater("the bucket is full", kind="disk-full", **about)
        case _ if status >= 500 or status in {408, 425} or code in _AGAIN_CODES:
            return RetryLater(f"the bucket is out of order: {code}", kind="bucket-unreachable", **about)
        case _:
            return InvalidInput(f"the bucket refuses the request: {code}", kind="invalid-setting", **about)


def _cause(error: BaseException) -> str:
    """Why there was no answer; botocore keeps what it met beside its own words, which name the object."""
    met = getattr(error, "kwargs", {}).get("error")
    return cause_of(met if isinstance(met, BaseException) else error)


def _no_keys(reason: str, bucket: str) -> Denied:
    return Denied(
        f"the hub finds no keys for the bucket: {reason[:300]}",
        hint="Check the machine's role or profile, or give the hub keys of its own",
        bucket=bucket,
    )


def code_of(error: ClientError) -> str:
    """The code in an S3 error, "" if it has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """The HTTP status of an S3 error."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))


def retry_after(error: ClientError) -> float | None:
    """The seconds of a Retry-After header (a number or a date), at most an hour."""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    text = str(headers.get("retry-after", "")).strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), _MAX_AFTER)
    if not text:
        return None
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), _MAX_AFTER)
