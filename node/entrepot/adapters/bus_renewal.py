"""When and how the credentials of a bus are renewed."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

from entrepot.adapters.bus_state import BusSettings, BusStats
from entrepot.core.errors import EntrepotError, RetryLater
from entrepot.core.keyring import Credentials


class Renewal:
    """Renews the credentials in time, and on demand. ``reconnect`` is called when new ones wait to be used.

    Times inside are those of the event loop; the wall clock is read only to see how much of a stored JWT's
    life has passed, and not believed when it contradicts the JWT.
    """

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        renew: Callable[[], Awaitable[None]] | None,
        settings: BusSettings,
        stats: BusStats,
        reconnect: Callable[[], None],
    ) -> None:
        self._credentials = credentials
        self._renew = renew
        self._settings = settings
        self._stats = stats
        self._reconnect = reconnect
        self._random = secrets.SystemRandom()
        self._lock = asyncio.Lock()
        self._planned = asyncio.Event()
        self._due: float | None = None
        self._expires = 0.0
        self._jwt = ""

    @property
    def possible(self) -> bool:
        """Whether somebody said how to renew."""
        return self._renew is not None

    def plan(self, credentials: Credentials) -> None:
        """Plan the renewal of credentials just taken into use: at 50 to 70 % of their life.

        Sooner when part of that has passed already. Raises InvalidInput for a JWT that is none.
        """
        issued, expires = credentials.times()
        now = asyncio.get_running_loop().time()
        self._jwt = credentials.jwt
        if expires is None:
            self._due = None
        else:
            life = float(max(1, expires - issued))
            left = expires - time.time()
            if not 0 < left <= life:  # our clock and the hub's differ: trust the length, not the clock
                left = life
            share = self._random.uniform(self._settings.refresh_from, self._settings.refresh_until)
            self._expires = now + left
            self._due = now + max(min(1.0, left / 2), share * life - (life - left))
        self._planned.set()

    async def renew(self) -> None:
        """Fetch new credentials now; who comes while another does so shares its success.

        Raises what the callback raises (EntrepotError) or RetryLater ``deadline``.
        """
        if self._renew is None:
            return
        seen = self._stats.renewals
        async with self._lock:
            if self._stats.renewals != seen:
                return
            try:
                async with asyncio.timeout(self._settings.renew_timeout):
                    await self._renew()
            except TimeoutError:
                self._stats.renew_failures += 1
                raise RetryLater("the hub did not renew the credentials in time", kind="deadline") from None
            except EntrepotError:
                self._stats.renew_failures += 1
                raise
            self._stats.renewals += 1

    async def run(self) -> None:
        """Renew before the credentials in use expire, for ever.

        A renewal that fails is counted and tried again; when the JWT has expired the server ends the
        connection and the bus renews before the next.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._planned.clear()
            wait = None if self._due is None else max(0.0, self._due - loop.time())
            try:
                async with asyncio.timeout(wait):
                    await self._planned.wait()
                continue
            except TimeoutError:
                pass
            again = self._settings.renew_again
            try:
                await self.renew()
                changed = self._credentials().jwt != self._jwt
            except EntrepotError:
                changed = False
            self._due = loop.time() + max(1.0, min(again, (self._expires - loop.time()) / 4))
            if changed:
                self._reconnect()
