"""What the Azure libraries and the layers below them raise, as our errors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final
from xml.etree.ElementTree import ParseError

import urllib3.exceptions
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

from entrepot.core.errors import Conflict, Corrupt, Denied, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot_hub.adapters.buckets.answers import word_of
from entrepot_hub.adapters.buckets.causes import cause_of

_TOKEN_CODE = re.compile(r"\bAADSTS\d{1,12}\b")
_WRONG_KEYS: Final = frozenset({"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"})
#: What an answer lacks or has too much of comes out of the libraries as errors of the language.
_LIBRARIES: Final = (
    AzureError,
    urllib3.exceptions.HTTPError,
    OSError,
    ParseError,
    ValueError,
    LookupError,
    ArithmeticError,
    RecursionError,
    TypeError,
    AttributeError,
)
#: A policy, a hold or a lease keeps the blob as it is.
_HELD: Final = frozenset({"BlobImmutableDueToPolicy", "LeaseIdMissing", "LeaseIdMismatchWithBlobOperation"})


@contextlib.contextmanager
def translation(container: str) -> Iterator[None]:
    """The one place where the errors of the Azure libraries and of what they stand on become ours."""
    try:
        yield
    except EntrepotError:
        raise
    # Not chained: what the libraries say may be the endpoint's own words, and those are not for logs.
    except HttpResponseError as error:
        raise _from_answer(error, container) from None
    except _LIBRARIES as error:
        raise _unreachable(error, container) from None


def _from_answer(error: HttpResponseError, container: str) -> EntrepotError:
    code, status = code_of(error), status_of(error)
    about: dict[str, Any] = {"bucket": container, "status": status, "code": code or str(status or "")}
    if status is None or status < 300:
        if isinstance(error, ClientAuthenticationError):
            return Denied(
                f"the application gets no token: {_token_code(error)}",
                hint="Look at its tenant, client id and secret, and whether the secret has expired",
                **about,
            )
        return _unreachable(error, container)
    if code == "ContainerNotFound":
        return InvalidInput(f"there is no container {container!r} in this account", kind="invalid-setting", **about)
    if code in _WRONG_KEYS:
        if "date header" in str(error).lower():
            return Denied(
                "the account's clock and the hub's differ too much",
                kind="clock-skew",
                hint="Set the hub's clock",
                **about,
            )
        return Denied("the account does not accept the hub's key", hint="Give the hub a valid key", **about)
    if code in _HELD:
        return Denied(
            "a policy, a legal hold or a lease keeps the blob as it is",
            hint="Let the container have neither immutability policies nor legal holds",
            **about,
        )
    if code == "BlobArchived":
        return Corrupt("the blob is archived: nobody can read it", kind="corrupt-object", **about)
    if code == "BlobAlreadyExists":
        return Conflict("there is such an object already", kind="exists", **about)
    match status:
        case 404:
            return NotFound("there is no such object", kind="no-such-object", **about)
        case 401 | 403:
            return Denied(
                "the account denies this to the hub",
                hint="An application needs the roles Storage Blob Data Contributor and Storage Blob Delegator; the "
                "account's firewall must let the hub in",
                **about,
            )
        case 412:
            return Conflict("the object was replaced or removed", kind="changed", **about)
        case 409 | 429 | 503:
            return RetryLater(f"the account is busy: {code or status}", kind="busy", **about)
        case 507:
            return RetryLater("the account is full", kind="disk-full", **about)
        case _ if status >= 500 or status == 408:
            return RetryLater(f"the account is out of order: {code or status}", kind="bucket-unreachable", **about)
        case _:
            return InvalidInput(f"the account refuses the request: {code or status}", kind="invalid-setting", **about)


def _unreachable(error: Exception, container: str) -> RetryLater:
    cause = cause_of(error)
    return RetryLater(
        f"the container cannot be reached: {cause}",
        kind="bucket-unreachable",
        bucket=container,
        cause=cause,
    )


def _token_code(error: Exception) -> str:
    """Microsoft's code for why there is no token, the kind of the error if it says none."""
    found = _TOKEN_CODE.search(str(error))
    return type(error).__name__ if found is None else found.group()


def code_of(error: HttpResponseError) -> str:
    """The code in Azure's error, "" if it has none or what is none."""
    code = getattr(error, "error_code", None)
    if code is None:
        code = getattr(error.response, "headers", {}).get("x-ms-error-code")
    return word_of(getattr(code, "value", code))


def status_of(error: HttpResponseError) -> int | None:
    """The HTTP status of Azure's error, none if there was no answer."""
    status = error.status_code
    return None if status is None else int(status)
