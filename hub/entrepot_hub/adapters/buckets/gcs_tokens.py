"""Google's access tokens, renewed early and once for all threads; and who signs URLs.

google-auth renews a token in whichever request finds it old, and in each of them. Under load that is a burst of
requests to the token endpoint at the worst moment, so here one thread renews and the others go on with the token that
still holds.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, Final

import google.auth
import requests
from google.auth import crypt, iam
from google.auth.credentials import Credentials, Signing
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.oauth2 import service_account

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.buckets.credentials import GcsServiceAccount
from entrepot_hub.adapters.buckets.gcs_settings import GcsSettings, parse_service_account

#: Full control is what reading a bucket's access policy needs; what the account really may, its roles say.
_STORAGE_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.full_control"
#: The scope with which the IAM service signs.
_CLOUD_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"

#: A token is renewed so many seconds before its end,
EARLY: Final = 300.0
#: is taken for no longer usable so many seconds before it, for clocks differ,
_LATE: Final = 20.0
#: and while it is usable not tried again sooner than this after a try: metadata servers give the old one for a while.
_PAUSE: Final = 10.0


class SharedToken(Credentials, Signing):
    """Credentials whose token all threads share, and which sign.

    ``send`` makes the requests for tokens; ``clock`` gives unix seconds. Safe for threads. Calls that need a token
    raise google-auth's errors if there is no usable one and none can be had.
    """

    def __init__(
        self, inner: Any, *, send: Callable[..., Any], signer: Any, email: str, clock: Callable[[], float]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inner = inner
        self._send = send
        self._signing = signer
        self._email = email
        self._clock = clock
        self._renewing = threading.Lock()
        self._tried = self._renewed = float("-inf")

    # --- the token ----------------------------------------------------------------------------------------

    def before_request(self, request: Any, method: str, url: str, headers: MutableMapping[str, str]) -> None:
        """Put the token into the headers, renewed if it is time."""
        del request, method, url
        self._keep_fresh()
        self._inner.apply(headers)

    def refresh(self, request: Any) -> None:
        """A server refused the token: get another, once for all that were refused."""
        del request
        with self._renewing:
            if self._clock() - self._renewed >= _PAUSE:
                self._renew()

    def _keep_fresh(self) -> None:
        left = self._left()
        if left > EARLY:
            return
        if left > _LATE:
            if self._clock() - self._tried < _PAUSE or not self._renewing.acquire(blocking=False):
                return
            try:
                if self._left() <= EARLY:
                    self._renew()
            except GoogleAuthError:
                # The old token holds a while yet; the next try is soon, and the last one raises.
                return
            finally:
                self._renewing.release()
            return
        with self._renewing:
            if self._left() <= _LATE:
                self._renew()

    def _renew(self) -> None:
        self._tried = self._clock()
        self._inner.refresh(self._send)
        self._renewed = self._clock()

    def _left(self) -> float:
        """Seconds for which the token holds."""
        if not self._inner.token:
            return 0.0
        expiry: dt.datetime | None = self._inner.expiry
        if expiry is None:
            return float("inf")
        return expiry.replace(tzinfo=dt.UTC).timestamp() - self._clock()

    # --- signing ------------------------------------------------------------------------------------------

    def sign_bytes(self, message: bytes) -> bytes:
        """RSA-SHA256 of the message, by the private key or by the IAM service."""
        signature: bytes = self._signing.sign(message)
        return signature

    @property
    def signer_email(self) -> str:
        """The service account in whose name is signed."""
        return self._email

    @property
    def signer(self) -> Any:
        """google-auth's signer."""
        return self._signing


class _SharedSigner(crypt.Signer):
    """The IAM service as signer, with the token that is shared."""

    def __init__(self, send: Callable[..., Any], email: str) -> None:
        self._send = send
        self._email = email
        self.token: SharedToken | None = None

    @property
    def key_id(self) -> None:
        """Not known: Google changes the key."""
        return

    def sign(self, message: bytes) -> bytes:
        """Ask the IAM service."""
        signer = iam.Signer(self._send, self.token, self._email)  # type: ignore[no-untyped-call]
        signature: bytes = signer.sign(message)
        return signature


def make_token(
    settings: GcsSettings, session: requests.Session, clock: Callable[[], float]
) -> tuple[SharedToken, str | None, bool]:
    """The credentials of the settings, the project they belong to, and whether signing is a request to Google.

    Blocks: reads a key, or asks the machine who it is. Raises google-auth's errors and
    ``InvalidInput(invalid-setting)``.
    """
    send: Any = partial(Request(session), timeout=(settings.connect_timeout, settings.read_timeout))
    given = settings.credentials
    if isinstance(given, GcsServiceAccount):
        fields = parse_service_account(given, settings.endpoint)
        try:
            inner: Any = service_account.Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
                fields, scopes=[_STORAGE_SCOPE]
            )
        except (ValueError, TypeError):
            # Not chained: what a parser of keys says is not to be trusted with a key.
            raise InvalidInput(
                "the private key of the service account cannot be read",
                kind="invalid-setting",
                hint="Give the whole JSON file as it was downloaded",
            ) from None
        token = SharedToken(inner, send=send, signer=inner.signer, email=given.client_email, clock=clock)
        return token, fields.get("project_id"), False
    inner, project = google.auth.default(scopes=[_CLOUD_SCOPE], request=send)
    if given.client_email is None and isinstance(inner, Signing) and _has_key(inner):
        return SharedToken(inner, send=send, signer=inner.signer, email=inner.signer_email, clock=clock), project, False
    email = given.client_email or _email_of(inner, send)
    signer = _SharedSigner(send, email)
    signer.token = SharedToken(inner, send=send, signer=signer, email=email, clock=clock)
    return signer.token, project, True


def _has_key(inner: Any) -> bool:
    """Whether the identity of the machine is the file of a service account's key."""
    return isinstance(inner, service_account.Credentials)


def _email_of(inner: Any, send: Callable[..., Any]) -> str:
    email = getattr(inner, "service_account_email", None)
    if email == "default":
        # The metadata server tells the account's name together with the first token.
        inner.refresh(send)
        email = inner.service_account_email
    if not isinstance(email, str) or "@" not in email:
        raise InvalidInput(
            "it is not known as which service account the hub is to sign",
            kind="invalid-setting",
            hint="State the service account's address",
        )
    return email
