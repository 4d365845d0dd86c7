"""What boto3 and the layers below it raise, as our errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import urllib3.exceptions
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError

from entrepot.core.errors import Conflict, Denied, EntrepotError, Internal, InvalidInput, NotFound, RetryLater

_WRONG_KEYS: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
)


@contextlib.contextmanager
def translation(bucket: str) -> Iterator[None]:
    """The one place where the errors of boto3 and of what it stands on become ours."""
    try:
        yield
    except EntrepotError:
        raise
    except ClientError as error:
        raise _from_answer(error, bucket) from error
    except (NoConnection, HTTPClientError, ResponseParserError, urllib3.exceptions.HTTPError, OSError) as error:
        raise RetryLater(
            f"the bucket cannot be reached: {type(error).__name__}: {str(error)[:300]}",
            kind="bucket-unreachable",
            bucket=bucket,
        ) from error
    except BotoCoreError as error:
        raise Internal(f"a request to the bucket was not well-formed: {str(error)[:300]}", bucket=bucket) from error


def _from_answer(error: ClientError, bucket: str) -> EntrepotError:
    code, status = code_of(error), status_of(error)
    about: dict[str, Any] = {"bucket": bucket, "status": status, "code": code}
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
    if code in _WRONG_KEYS:
        return Denied("the bucket does not accept the hub's key", hint="Give the hub a valid key pair", **about)
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
        case _ if status >= 500 or status == 408 or code in {"RequestTimeout", "SlowDown"}:
            return RetryLater(f"the bucket is out of order: {code}", kind="bucket-unreachable", **about)
        case _:
            return InvalidInput(f"the bucket refuses the request: {code}", kind="invalid-setting", **about)


def code_of(error: ClientError) -> str:
    """The code in an S3 error, "" if it has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """The HTTP status of an S3 error."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
