"""The master keys of a hub: one that seals and, while it is being changed, the other one that opens too.

A change in progress is written down as both keys, each sealed under the other (:class:`Change`): whoever has
either has both, and what lies on the disk is worth nothing without one of them.
"""

from __future__ import annotations

from typing import Final, Self

from entrepot.core.errors import Denied
from entrepot_hub.core.sealing import KEY_LENGTH, SEAL_OVERHEAD, SEAL_RANDOM, MasterKey, opens, reseal, seal, unseal

#: Random bytes that :meth:`Change.write` needs.
CHANGE_RANDOM: Final = 2 * SEAL_RANDOM

_NEXT: Final = b"entrepot.master.next\0"
_PREVIOUS: Final = b"entrepot.master.previous\0"
_SEALED_KEY: Final = KEY_LENGTH + SEAL_OVERHEAD


class MasterKeys:
    """The first of ``keys`` seals, all of them open. Shared by everything in a hub that seals, so that a change of the
    key holds everywhere at once. Never printed."""

    def __init__(self, *keys: MasterKey) -> None:
        self._keys = tuple(dict.fromkeys(keys))

    @classmethod
    def of(cls, given: MasterKey | MasterKeys) -> MasterKeys:
        """These keys, or the one key as such."""
        return given if isinstance(given, MasterKeys) else cls(given)

    def __repr__(self) -> str:
        return f"MasterKeys({', '.join(key.fingerprint for key in self._keys)})"

    @property
    def sealing(self) -> MasterKey:
        """The key that seals."""
        return self._keys[0]

    @property
    def all(self) -> tuple[MasterKey, ...]:
        """All keys, the sealing one first."""
        return self._keys

    def named(self, fingerprint: str) -> MasterKey | None:
        """The key of this fingerprint, if it is here."""
        return next((key for key in self._keys if key.fingerprint == fingerprint), None)

    def turn(self, key: MasterKey) -> None:
        """Seal with this key from now on; the others still open."""
        self._keys = tuple(dict.fromkeys((key, *self._keys)))

    def also(self, key: MasterKey) -> None:
        """Open what this key sealed, too."""
        self._keys = tuple(dict.fromkeys((*self._keys, key)))

    def only(self, key: MasterKey) -> None:
        """Forget all others."""
        self._keys = (key,)

    def seal(self, secret: bytes, *, associated: bytes, random: bytes) -> bytes:
        """As :func:`~entrepot_hub.core.sealing.seal`, with the sealing key."""
        return seal(secret, key=self.sealing, associated=associated, random=random)

    def unseal(self, blob: bytes, *, associated: bytes) -> bytes:
        """As :func:`~entrepot_hub.core.sealing.unseal`, with whichever key fits."""
        return unseal(blob, key=self._fitting(blob, associated), associated=associated)

    def reseal(self, blob: bytes, *, to: MasterKey, associated: bytes, random: bytes) -> bytes:
        """The blob under ``to``, whichever key it was under; the same one if that is ``to`` already. Raises as
        :func:`~entrepot_hub.core.sealing.reseal`."""
        if opens(blob, key=to, associated=associated):
            return blob
        return reseal(blob, old=self._fitting(blob, associated), new=to, associated=associated, random=random)

    def _fitting(self, blob: bytes, associated: bytes) -> MasterKey:
        """The key that the blob was sealed under; the sealing key, which will say so, if none is."""
        return next((key for key in self._keys if opens(blob, key=key, associated=associated)), self.sealing)


class Change:
    """A change of the master key that is under way: from ``old`` to ``new``."""

    def __init__(self, old: MasterKey, new: MasterKey) -> None:
        self.old = old
        self.new = new

    def __repr__(self) -> str:
        return f"Change({self.old.fingerprint} to {self.new.fingerprint})"

    def write(self, random: bytes) -> bytes:
        """What is kept of it until it is done; ``random`` is :data:`CHANGE_RANDOM` fresh random bytes."""
        return seal(self.new.raw, key=self.old, associated=_NEXT, random=random[:SEAL_RANDOM]) + seal(
            self.old.raw, key=self.new, associated=_PREVIOUS, random=random[SEAL_RANDOM:]
        )

    @classmethod
    def read(cls, blob: bytes, key: MasterKey) -> Self:
        """What :meth:`write` wrote, opened by either of the two keys. Denied if ``key`` is a third one, Corrupt."""
        forth, back = blob[:_SEALED_KEY], blob[_SEALED_KEY:]
        if opens(forth, key=key, associated=_NEXT):
            return cls(key, MasterKey(unseal(forth, key=key, associated=_NEXT)))
        if opens(back, key=key, associated=_PREVIOUS):
            return cls(MasterKey(unseal(back, key=key, associated=_PREVIOUS)), key)
        raise Denied(
            "a change of the master key was begun that this master key has no part in",
            hint="Give the hub the key that it had before, or the new one.",
        )
