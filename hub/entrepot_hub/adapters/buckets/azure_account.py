"""A storage account as the libraries of Azure reach it: clients, an application's tokens, and what signs URLs.

With an account's key URLs are signed on the spot. An application signs with a user delegation key, which is fetched
from the account, kept for a day or two and renewed early; no URL outlives it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import requests
from azure.core.exceptions import AzureError, HttpResponseError
from azure.core.pipeline.transport import RequestsTransport
from azure.identity import ClientSecretCredential
from azure.storage.blob import BlobServiceClient, ExponentialRetry, UserDelegationKey, generate_blob_sas

from entrepot_hub.adapters.buckets.answers import BoundedAdapter
from entrepot_hub.adapters.buckets.azure_errors import status_of
from entrepot_hub.adapters.buckets.azure_settings import AzureSettings
from entrepot_hub.adapters.buckets.credentials import AzureKey
from entrepot_hub.adapters.buckets.interface import MAX_READ, Method

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.storage.blob import BlobClient, ContainerClient

#: Seconds that a user delegation key is asked to live, at most seven days; and how many of them have to be left, or
#: another one is fetched.
KEY_LIFE: Final = 48 * 3600.0
KEY_LEFT: Final = 24 * 3600.0
#: Seconds for which a key that could not be renewed goes on being used before the next try.
KEY_PAUSE: Final = 60.0
#: A key begins so many seconds ago: clocks differ.
_KEY_START: Final = 900.0

#: Arguments of the library's signing function, and when URLs signed with them end at the latest (unix seconds).
type Signer = tuple[Mapping[str, Any], float]


class AzureAccount:
    """Blocking; for the threads of a bucket. Raises the libraries' errors. Constructing one does no I/O."""

    def __init__(self, settings: AzureSettings, clock: Callable[[], float], token: TokenCredential | None) -> None:
        self._settings = settings
        self._clock = clock
        self._token = token
        self._adapter = BoundedAdapter(seconds=settings.deadline, connections=settings.threads)
        self._making = threading.Lock()
        self._made: BlobServiceClient | None = None
        self._credential: ClientSecretCredential | None = None
        self._renewing = threading.Lock()
        self._kept: Signer | None = None
        self._paused_until = 0.0
        if isinstance(settings.credentials, AzureKey):
            self._kept = {"account_key": settings.credentials.key}, float("inf")

    def blob(self, key: str) -> BlobClient:
        """The blob of this name."""
        return self.service().get_blob_client(self._settings.container, key)

    def container(self) -> ContainerClient:
        """The container."""
        return self.service().get_container_client(self._settings.container)

    def service(self) -> BlobServiceClient:
        """The account's client, made once."""
        with self._making:
            if self._made is None:
                settings, given = self._settings, self._settings.credentials
                credential: Any
                if isinstance(given, AzureKey):
                    credential = {"account_name": given.account, "account_key": given.key}
                else:
                    credential = self._token or self._tokens()
                self._made = BlobServiceClient(
                    settings.base,
                    credential,
                    connection_timeout=settings.connect_timeout,
                    read_timeout=settings.read_timeout,
                    transport=self._transport(),
                    retry_policy=ExponentialRetry(
                        initial_backoff=1, increment_base=2, random_jitter_range=1, retry_total=settings.attempts - 1
                    ),
                    permit_redirects=False,
                    max_single_put_size=MAX_READ,
                    max_single_get_size=MAX_READ,
                )
            return self._made

    def about(self) -> Mapping[str, str]:
        """What the account tells of itself, in headers; nothing to those who may not ask."""
        found: dict[str, str] = {}
        try:
            self.service().get_account_information(raw_response_hook=partial(note_headers, found))
        except HttpResponseError as error:
            if status_of(error) not in {400, 401, 403, 404, 405, 501}:
                raise
            return {}
        return found

    def ready_signer(self) -> Signer | None:
        """What signs now, without any I/O; ``None`` if it has to be fetched or renewed by :meth:`signer`."""
        kept = self._kept
        return kept if kept is not None and kept[1] - self._clock() >= KEY_LEFT else None

    def signer(self) -> Signer:
        """What signs, with enough of its life left, fetched by one thread for all.

        While the old one lives nobody waits for the new one. That the old one could not be renewed is no error until
        it ends: it is tried again until then.
        """
        now = self._clock()
        kept = self._kept
        alive = kept is not None and kept[1] - now > 1
        if kept is not None and alive and now < self._paused_until:
            return kept
        if not self._renewing.acquire(blocking=not alive):
            assert kept is not None
            return kept
        try:
            fresh = self.ready_signer()  # another thread was faster
            if fresh is None:
                fresh = self._fetched(now)
            self._kept = fresh
        except (AzureError, OSError):  # what an outage raises; a mistake of ours is not outlived
            if kept is None or not alive:
                raise
            self._paused_until = now + KEY_PAUSE
            return kept
        else:
            return fresh
        finally:
            self._renewing.release()

    def _fetched(self, now: float) -> Signer:
        begin, end = (datetime.fromtimestamp(int(moment), UTC) for moment in (now - _KEY_START, now + KEY_LIFE))
        key: UserDelegationKey = self.service().get_user_delegation_key(begin, end)
        told = datetime.fromisoformat(key.signed_expiry or "")
        return {"user_delegation_key": key}, min(end, told).timestamp()

    def signature(self, signer: Signer, method: Method, key: str, end: int) -> str:
        """The query of a URL for this blob until ``end`` (unix seconds): to create it, or to read it."""
        settings = self._settings
        return generate_blob_sas(
            settings.credentials.account,
            settings.container,
            key,
            permission="c" if method == "PUT" else "r",
            expiry=datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            protocol="https" if settings.public_base.startswith("https:") else None,
            **signer[0],
        )

    def cut(self) -> None:
        """End the connections on which answers are awaited, and ask no more."""
        self._adapter.cut()

    def close(self) -> None:
        """Let go of connections. Idempotent."""
        with self._making:
            if self._made is not None:
                self._made.close()
                self._made = None
            if self._credential is not None:
                self._credential.close()
                self._credential = None

    def _tokens(self) -> ClientSecretCredential:
        settings, given = self._settings, self._settings.credentials
        assert not isinstance(given, AzureKey)
        self._credential = ClientSecretCredential(
            given.tenant,
            given.client,
            given.secret,
            authority=settings.authority,
            connection_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            retry_total=settings.attempts - 1,
            transport=self._transport(),
        )
        return self._credential

    def _transport(self) -> RequestsTransport:
        session = requests.Session()
        for scheme in ("https://", "http://"):
            session.mount(scheme, self._adapter)
        return RequestsTransport(
            session=session,
            connection_timeout=self._settings.connect_timeout,
            read_timeout=self._settings.read_timeout,
        )


def note_headers(into: dict[str, str], response: Any) -> None:
    """Keep the headers of an answer, by names in lower case: for the libraries' ``raw_response_hook``."""
    into.update({name.lower(): value for name, value in response.http_response.headers.items()})
