"""The keys of buckets: one type for each way in which a provider lets somebody in.

A secret shows in no ``repr``. :attr:`label` is the part that is no secret, for people to tell two keys apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from entrepot.core.errors import InvalidInput


class _KeyName(msgspec.Struct):
    """What names a key within a service account's key document."""

    private_key_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Credentials:
    """A key pair, and the token of a temporary one with its end (unix seconds). URLs signed with a temporary one die
    with it.

    ``role``: an ARN; then the pair is only used to assume it, again and again before it ends, with ``external_id``
    where the role's owner asks for one."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires: float | None = None
    role: str | None = None
    external_id: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.access_key or not self.secret_key:
            raise InvalidInput("an access key and a secret key are needed", kind="invalid-setting")

    @property
    def label(self) -> str:
        """The access key, which is no secret."""
        return self.access_key


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Ambient:
    """What the hub's machine is allowed to: an instance profile, a container's role, web identity, or the profile of
    the provider's own command line. ``role`` and ``external_id`` as in :class:`S3Credentials`."""

    role: str | None = None
    external_id: str | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """In words."""
        return self.role or "the machine's own"


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsServiceAccount:
    """A Google service account's key: the whole JSON document, as downloaded."""

    document: str = field(repr=False)
    client_email: str

    @property
    def label(self) -> str:
        """The account's address, and which of its keys this is."""
        try:
            key = msgspec.json.decode(self.document, type=_KeyName).private_key_id
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            key = ""
        return f"{self.client_email} (key {key[:8]})" if key else self.client_email


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsAmbient:
    """Workload identity: the service account of the machine, which signs through the IAM service. ``client_email``
    where it is not the machine's own account that signs."""

    client_email: str | None = None

    @property
    def label(self) -> str:
        """In words."""
        return self.client_email or "the machine's own"


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureKey:
    """A storage account's name and one of its two keys (base64)."""

    account: str
    key: str = field(repr=False)

    @property
    def label(self) -> str:
        """The account."""
        return self.account


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureClient:
    """An application registered in Entra ID, let in to a storage account; URLs are signed by user delegation keys."""

    account: str
    tenant: str
    client: str
    secret: str = field(repr=False)

    @property
    def label(self) -> str:
        """The application."""
        return self.client


type Credentials = S3Credentials | S3Ambient | GcsServiceAccount | GcsAmbient | AzureKey | AzureClient
