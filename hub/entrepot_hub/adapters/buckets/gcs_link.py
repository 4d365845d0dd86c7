"""The way to Google Cloud Storage: one client, one session, one token for all threads, made when first needed.

Every call has a deadline and a bounded number of tries. Everything here blocks, and raises the errors of Google's
libraries or ours.
"""

from __future__ import annotations

import email.utils
import http.client
import json as json_text
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal

import requests
import urllib3.exceptions
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.auth.exceptions import TransportError
from google.auth.transport.requests import AuthorizedSession, Request
from google.cloud.storage import Client

from entrepot.core.errors import RetryLater
from entrepot_hub.adapters.buckets.answers import MAX_ANSWER, BoundedAdapter
from entrepot_hub.adapters.buckets.gcs_settings import GcsSettings
from entrepot_hub.adapters.buckets.gcs_tokens import SharedToken, make_token
from entrepot_hub.adapters.buckets.interface import Method

_FIELDS: Final = "items(name,size,md5Hash,generation,timeCreated,updated,kmsKeyName),nextPageToken"
#: Pages without an entry that are skipped in one call: Google may answer some, and asks to go on.
_EMPTY_PAGES: Final = 50
_CHUNK: Final = 1 << 20
_PASSING_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})
_PASSING: Final = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ConnectionError,
    TransportError,
)

type Blobs = list[Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole body of an answer."""

    body: bytes

    def fields(self) -> Mapping[str, Any]:
        """The JSON object in it. Raises ``RetryLater(bucket-unreachable)`` if there is none."""
        try:
            fields = json_text.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise nonsense() from error
        if not isinstance(fields, dict):
            raise nonsense()
        return fields


class Repetitions(Retry):
    """The tries of one call: as many as the settings say, with full jitter between them, not past the deadline."""

    def __init__(self, attempts: int, deadline: float) -> None:
        self.repeated = False
        self._left = attempts - 1
        super().__init__(predicate=self._again, initial=0.1, maximum=2.0, multiplier=2.0, timeout=deadline)

    def _again(self, error: BaseException) -> bool:
        passing = isinstance(error, _PASSING) or (
            isinstance(error, api.GoogleAPICallError) and error.code in _PASSING_STATUS
        )
        status = getattr(getattr(error, "response", None), "status_code", None)
        if self._left <= 0 or not (passing or status in _PASSING_STATUS):
            return False
        self._left -= 1
        self.repeated = True
        return True


@dataclass(frozen=True, slots=True)
class _Made:
    client: Client
    session: requests.Session
    tokens: requests.Session
    token: SharedToken
    project: str | None


class GcsLink:
    """A bucket of the settings, reached with their credentials. Safe for threads.

    ``signer``: ``None`` until :meth:`connect`; then whether the hub has a private key, or the IAM service signs.
    """

    def __init__(self, settings: GcsSettings, clock: Callable[[], float]) -> None:
        self.signer: Literal["key", "iam"] | None = None
        self._settings = settings
        self._clock = clock
        self._adapter = BoundedAdapter(seconds=settings.deadline, connections=settings.threads)
        self._making = threading.Lock()
        self._made: _Made | None = None

    def connect(self) -> None:
        """Read the key, or ask the machine who it is. Idempotent."""
        self._connected()

    def project(self) -> str | None:
        """The project of the credentials, where they tell."""
        return self._connected().project

    def blob(self, key: str) -> Any:
        """The client's handle of an object."""
        return self._connected().client.bucket(self._settings.bucket).blob(key)

    def call(self) -> dict[str, Any]:
        """Deadlines and tries, as the client's methods take them."""
        return {
            "timeout": (self._settings.connect_timeout, self._settings.read_timeout),
            "retry": Repetitions(self._settings.attempts, self._settings.deadline),
        }

    def sign(
        self, method: Method, key: str, bound: Mapping[str, str], expires: int, generation: str | None = None
    ) -> str:
        """A URL for nodes, signed by the V4 process with the headers ``bound``. A request to Google if ``signer`` is
        "iam"."""
        url: str = self.blob(key).generate_signed_url(
            version="v4",
            expiration=expires,
            api_access_endpoint=self._settings.public_base,
            method=method,
            headers=dict(bound),
            generation=generation,
            credentials=self._connected().token,
        )
        return url

    def page(self, prefix: str, limit: int, begin: str | None = None) -> tuple[Blobs, bool]:
        """The first page that is not empty of what begins with ``prefix`` and is not before ``begin``, and whether
        there are more."""
        blobs = self._connected().client.list_blobs(
            self._settings.bucket, prefix=prefix, start_offset=begin, page_size=limit, fields=_FIELDS, **self.call()
        )
        try:
            for page in islice(blobs.pages, _EMPTY_PAGES):
                found = [*page]
                if not all(isinstance(blob.name, str) for blob in found):
                    raise nonsense()
                if found or blobs.next_page_token is None:
                    return found, blobs.next_page_token is not None
        except (AttributeError, KeyError, TypeError) as error:
            # The library takes for granted that the answer is a listing.
            raise nonsense() from error
        return [], False

    def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str],
        json: Mapping[str, Any] | None = None,
        piece: tuple[int, int] | None = None,
    ) -> Answer:
        """One request on the client's session, repeated as the client's own. ``piece``: exactly these bytes (offset
        and length) are wanted, fewer only at the object's end; another range is never taken for them."""
        call = self.call()
        session, url = self._connected().session, self._settings.base + path
        headers = {"Accept-Encoding": "identity"}
        if piece is not None:
            headers["Range"] = f"bytes={piece[0]}-{sum(piece) - 1}"

        def once() -> Answer:
            end = time.monotonic() + self._settings.deadline
            with session.request(
                method, url, params=params, json=json, headers=headers, timeout=call["timeout"], stream=True
            ) as response:
                if response.status_code >= 300:
                    raise api.from_http_response(response)  # type: ignore[no-untyped-call]
                if piece is None:
                    return Answer(_body(response, MAX_ANSWER, end))
                _check_piece(response, piece[0])
                return Answer(_body(response, piece[1], end))

        answer: Answer = call["retry"](once)()
        return answer

    def skew(self) -> float | None:
        """Google's clock minus ours in seconds, to about one: by the date of any answer, a denial too."""
        before = self._clock()
        with self._connected().session.get(
            f"{self._settings.base}/storage/v1/b/{self._settings.bucket}",
            params={"fields": "name"},
            timeout=(self._settings.connect_timeout, self._settings.read_timeout),
            stream=True,
        ) as response:
            try:
                date = email.utils.parsedate_to_datetime(response.headers["Date"]).timestamp()
            except (KeyError, ValueError, TypeError, OverflowError):
                return None
        # The date is cut to its second: half of one is what is missing on average.
        return date + 0.5 - (before + self._clock()) / 2

    def cut(self) -> None:
        """End the connections on which answers are awaited, and ask no more."""
        self._adapter.cut()

    def close(self) -> None:
        """Let go of connections. Signing by a key goes on."""
        with self._making:
            if self._made is not None:
                self._made.session.close()
                self._made.tokens.close()

    def _connected(self) -> _Made:
        # Signing runs on the event loop, which must not wait for a lock.
        if (made := self._made) is not None:
            return made
        with self._making:
            if self._made is None:
                settings = self._settings
                tokens = requests.Session()
                tokens.mount("https://", self._adapter)
                tokens.mount("http://", self._adapter)
                token, project, remote = make_token(settings, tokens, self._clock)
                session: requests.Session = AuthorizedSession(  # type: ignore[no-untyped-call]
                    token, auth_request=Request(tokens)
                )
                session.mount("https://", self._adapter)
                session.mount("http://", self._adapter)
                client = Client(
                    project=None, credentials=token, _http=session, client_options={"api_endpoint": settings.base}
                )
                # The library would look up the bucket's record for its traces, in a thread that nothing ends and with a
                # permission that the hub need not have.
                client._bucket_metadata_cache = None
                self._made = _Made(client, session, tokens, token, project)
                self.signer = "iam" if remote else "key"
            return self._made


def nonsense() -> RetryLater:
    """What answers is something else."""
    return RetryLater(
        "what answers at the bucket's endpoint does not make sense",
        kind="bucket-unreachable",
        hint="Is it Google Cloud Storage?",
    )


def _check_piece(response: requests.Response, offset: int) -> None:
    """That the answer is a range, and begins where it was to begin."""
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    if response.status_code != 206 or unit != "bytes" or rest.partition("-")[0] != str(offset):
        raise RetryLater("the bucket answers with another range", kind="bucket-unreachable")


def _body(response: requests.Response, most: int, end: float) -> bytes:
    """The whole body, at most ``most`` bytes, before ``end`` (monotonic seconds)."""
    data = bytearray()
    for chunk in response.iter_content(_CHUNK):
        data += chunk
        if len(data) > most:
            raise RetryLater("the bucket answers with more than was asked for", kind="bucket-unreachable")
        if time.monotonic() > end:
            raise requests.exceptions.ReadTimeout("the answer takes too long")
    return bytes(data)
