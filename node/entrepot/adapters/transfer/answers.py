"""What a bucket's answer, or its silence, means: the one place where HTTP and sockets become errors of ours."""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import re
import ssl
import time
from collections.abc import Iterator
from typing import Final

from entrepot.adapters.transfer.requests import CancelToken
from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput, NotFound, RetryLater

ERROR_BODY: Final = 4096  # bytes of an error's text that are looked at
_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9_.-]{1,64})</Code>")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_WRONG_BYTES: Final = frozenset(
    {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "Md5Mismatch"}
)
_EXPIRED: Final = frozenset({"ExpiredToken", "AccessDenied", "AuthenticationFailed", "RequestTimeTooSkewed"})
#: The key that signed is refused, whatever was signed when.
_WRONG_KEY: Final = frozenset({"SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId"})
_AGAIN: Final = frozenset({"ConditionalRequestConflict", "OperationAborted", "IncompleteBody", "RequestTimeout"})


class Setback(Exception):  # not an error to anyone but the retry loop
    """An attempt failed in a way that another may not. ``error`` is what to raise when there is no other;
    ``after``: seconds the server asked to wait; ``at_once``: a kept connection was stale, which is no attempt."""

    def __init__(self, error: EntrepotError, *, after: float | None = None, at_once: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after
        self.at_once = at_once


def unreachable(reason: str, host: str, *, status: int | None = None, code: str | None = None) -> RetryLater:
    """The error for a bucket that cannot be reached or does not do what it should."""
    return RetryLater(f"the bucket at {host}: {reason}", kind="bucket-unreachable", host=host, status=status, code=code)


def cancelled() -> RetryLater:
    """The error for a transfer that was stopped."""
    return RetryLater("the transfer was stopped", kind="cancelled")


@contextlib.contextmanager
def network_errors(host: str, token: CancelToken, *, stale: bool = False) -> Iterator[None]:
    """Turns what sockets, TLS and HTTP raise into :class:`Setback`; a stopped transfer into ``cancelled``.

    ``stale``: the connection had been kept and no byte of the answer has come.
    """
    try:
        yield
    except (Setback, EntrepotError):
        raise
    except Exception as error:
        if token.is_set():
            raise cancelled() from error
        if isinstance(error, http.client.InvalidURL | UnicodeError):
            raise InvalidInput(f"not a usable URL or header: {str(error)[:200]}") from error
        if isinstance(error, ssl.SSLCertVerificationError):
            raise RetryLater(
                f"the bucket at {host} shows a certificate that is not trusted: {error.verify_message}",
                kind="bucket-unreachable",
                hint="If the bucket uses a private certificate authority, name its file in the settings.",
                host=host,
            ) from error
        if not isinstance(error, OSError | http.client.HTTPException):
            raise
        reason = "nothing came for too long" if isinstance(error, TimeoutError) else describe(error)
        gone = isinstance(error, ConnectionError | http.client.BadStatusLine)
        raise Setback(unreachable(reason, host), at_once=stale and gone) from error


def describe(error: BaseException) -> str:
    """A short reason: what a library says may repeat all that the bucket sent."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)[:200] or type(error).__name__


def refusal(host: str, response: http.client.HTTPResponse, body: bytes) -> EntrepotError | Setback:
    """What a status other than the expected one means."""
    status, code = response.status, error_code(body)
    said = f"answered {status}{f' ({code})' if code else ''}"
    if status in (408, 425, 429) or status >= 500 or code in _AGAIN:
        return Setback(unreachable(said, host, status=status, code=code), after=retry_after(response))
    if code in _WRONG_BYTES:
        return Conflict(
            f"the bucket at {host} got other bytes than were announced",
            kind="changed",
            status=status,
            code=code,
            host=host,
        )
    if status in (404, 410):
        return NotFound(
            f"the bucket at {host} has no such object", kind="no-such-object", status=status, code=code, host=host
        )
    if status == 412:
        return Conflict(
            "the object is no longer the one the URL was signed for",
            kind="changed",
            status=status,
            code=code,
            host=host,
        )
    if status in (400, 401, 403):
        wrong = code in _WRONG_KEY and b"xpired" not in body
        expired = not wrong and (status == 403 or code in _EXPIRED or b"xpired" in body)
        old = "The signed URL is too old, or this machine's clock or the hub's is wrong."
        key = "The bucket does not accept the hub's key: whoever runs the hub can ask `entrepot-hub channel doctor`."
        return Denied(
            f"the bucket at {host} refused the request: it {said}",
            kind="expired" if expired else "denied",
            hint=old if expired else key if wrong else None,
            status=status,
            code=code,
            host=host,
        )
    return unreachable(said, host, status=status, code=code)


def error_body(response: http.client.HTTPResponse) -> bytes:
    """The beginning of an error's text.

    Into a buffer, for ``read(n)`` is not bounded by n: a chunk of a negative length has it read to the end of the
    connection.
    """
    body, done = memoryview(bytearray(ERROR_BODY)), 0
    while done < ERROR_BODY and (count := response.readinto(body[done:])):
        done += count
    return bytes(body[:done])


def error_code(body: bytes) -> str | None:
    """The code in the XML that S3, GCS and Azure explain themselves with."""
    found = _CODE.search(body)
    return None if found is None else found[1].decode()


def retry_after(response: http.client.HTTPResponse) -> float | None:
    """Seconds that the server asks to wait."""
    text = response.headers.get("Retry-After")
    if text is None:
        return None
    if text.strip().isascii() and text.strip().isdigit():
        return float(text.strip()[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, ArithmeticError, OSError):
        return None


def content_length(response: http.client.HTTPResponse) -> int | None:
    """The length that the answer announces, None without one."""
    text = response.headers.get("Content-Length")
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 20 else None


def content_range(response: http.client.HTTPResponse) -> tuple[int, int, int | None] | None:
    """First and last byte and total of the part that the answer holds, None if it does not say or not clearly."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if found is None:
        return None
    return int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])
