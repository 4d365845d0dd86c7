"""The keys that sign for a bucket: a pair, a pair with an end, a role that is assumed again and again, the machine's.

Temporary keys are renewed early and once for all. A URL dies with the keys that signed it, so :class:`Keys` says when
they end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import botocore.session
from botocore.credentials import Credentials, ReadOnlyCredentials

from entrepot.core.errors import Denied, EntrepotError
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.buckets.s3_client import make_sts_client
from entrepot_hub.adapters.buckets.s3_errors import keys_translation
from entrepot_hub.adapters.buckets.s3_retries import Tries
from entrepot_hub.adapters.buckets.s3_settings import S3Settings
from entrepot_hub.adapters.buckets.s3_transport import Sockets, guard

#: Seconds before their end at which temporary keys are renewed; half of their life if that is shorter.
EARLY: Final = 600.0
#: Keys with fewer seconds left sign nothing: what they signed would be dead on arrival.
LEAST: Final = 60.0
#: Seconds between tries to renew keys that still serve.
_PAUSE: Final = 15.0


@dataclass(frozen=True, slots=True)
class Keys:
    """What signs, and until when (unix seconds; ``None``: for ever, or not known)."""

    pair: ReadOnlyCredentials = field(repr=False)
    ends: float | None

    def lasts(self, now: float, seconds: float) -> bool:
        """Whether that many are left."""
        return self.ends is None or self.ends - now >= seconds


class KeyRing:
    """Gives the keys of the moment, to any thread. ``clock`` gives unix seconds; ``wait`` as in :class:`Tries`.

    :meth:`ready` never waits; :meth:`fresh` may ask the network and belongs into a thread.
    """

    def __init__(
        self, settings: S3Settings, clock: Callable[[], float], wait: Callable[[float], bool], sockets: Sockets
    ) -> None:
        self._settings = settings
        self._sockets = sockets
        self._clock = clock
        self._wait = wait
        self._lock = threading.Lock()
        self._machine: Credentials | None = None
        self._keys: Keys | None = None
        self._renew_at = 0.0
        given = settings.credentials
        if isinstance(given, S3Credentials) and given.role is None:
            self._keys = Keys(
                ReadOnlyCredentials(given.access_key, given.secret_key, given.session_token), given.expires
            )
            self._renewable = False
        else:
            self._renewable = True

    @property
    def renewable(self) -> bool:
        """Whether there may be other keys after these."""
        return self._renewable

    def ready(self) -> Keys | None:
        """The keys, unless it is time to renew them. Raises ``Denied(expired)`` when they ended and none follow."""
        keys, now = self._keys, self._clock()
        if not self._renewable:
            assert keys is not None
            return self._alive(keys, now)
        if keys is None or now >= self._renew_at or not keys.lasts(now, LEAST):
            return None
        return keys

    def fresh(self) -> Keys:
        """The keys, renewed if it is time. One thread renews; others go on with the old ones as long as these last.

        Raises ``Denied`` (``expired``, or there are none), ``RetryLater(bucket-unreachable)``.
        """
        if (ready := self.ready()) is not None:
            return ready
        keys, now = self._keys, self._clock()
        usable = keys is not None and keys.lasts(now, LEAST)
        if not self._lock.acquire(blocking=not usable):
            assert keys is not None
            return keys
        try:
            if (ready := self.ready()) is not None:
                return ready
            try:
                return self._alive(self._renew(), self._clock())
            except EntrepotError:
                if usable and keys is not None:
                    self._renew_at = self._clock() + _PAUSE
                    return keys
                raise
        finally:
            self._lock.release()

    def drop(self) -> None:
        """Forget keys that the provider says have ended, so that the next call gets others."""
        if self._renewable:
            self._keys = None

    def for_client(self) -> Credentials:
        """The same for a client of boto3, which asks at each request."""
        return _Asking(self)

    def _renew(self) -> Keys:
        with keys_translation(self._settings.bucket):
            keys = self._assume() if self._settings.credentials.role is not None else self._of_the_machine()
        now = self._clock()
        life = 0.0 if keys.ends is None else max(keys.ends - now, 0.0)
        self._renew_at = float("inf") if keys.ends is None else keys.ends - min(EARLY, life / 2)
        self._keys = keys
        return keys

    def _assume(self) -> Keys:
        given = self._settings.credentials
        if isinstance(given, S3Credentials):
            source = Credentials(given.access_key, given.secret_key, given.session_token)
        else:
            source = self._found()
        asked: dict[str, Any] = {"RoleArn": given.role, "RoleSessionName": f"entrepot-{self._settings.bucket}"[:64]}
        if given.external_id is not None:
            asked["ExternalId"] = given.external_id
        tries = Tries(
            attempts=self._settings.attempts, total=self._settings.total, wait=self._wait, renew=lambda: False
        )
        client = make_sts_client(self._settings, source)
        guard(client, self._sockets, self._settings.total)
        try:
            answer = tries.make(partial(client.assume_role, **asked))["Credentials"]
        finally:
            client.close()
        pair = ReadOnlyCredentials(answer["AccessKeyId"], answer["SecretAccessKey"], answer["SessionToken"])
        return Keys(pair, answer["Expiration"].timestamp())

    def _of_the_machine(self) -> Keys:
        found = self._found()
        found.get_frozen_credentials()  # brings those that are fetched when they are first needed
        # The end is read first: keys that are renewed between the two lines end later than is said.
        ends = getattr(found, "_expiry_time", None)
        pair = found.get_frozen_credentials()
        return Keys(pair, None if ends is None else ends.timestamp())

    def _found(self) -> Credentials:
        if self._machine is None:
            self._machine = botocore.session.Session().get_credentials()
        if self._machine is None:
            raise Denied(
                "this machine has no keys of its own for a bucket",
                hint="Give it a role or a profile of the provider's command line, or give the hub keys",
                bucket=self._settings.bucket,
            )
        return self._machine

    def _alive(self, keys: Keys, now: float) -> Keys:
        if not keys.lasts(now, LEAST):
            raise Denied(
                "the hub's temporary keys for the bucket have ended, or end within a minute",
                kind="expired",
                hint="Give the hub new keys, or a role that it can assume again",
                bucket=self._settings.bucket,
            )
        return keys


class _Asking(Credentials):
    """What boto3 takes for credentials: it asks the ring at each request."""

    def __init__(self, ring: KeyRing) -> None:
        super().__init__("asked", "when needed")
        self._ring = ring

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        return self._ring.fresh().pair
