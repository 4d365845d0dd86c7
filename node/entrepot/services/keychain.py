"""The node's keys: one seed in a file of its owner's, one derived key for each hub."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from pathlib import Path
from typing import Final

from entrepot.adapters.documents import read_document, write_document
from entrepot.core.errors import Conflict, Corrupt
from entrepot.core.keyring import derive_node_key
from entrepot.core.nkeys import KEY_LENGTH, SigningKey

_TEXT_LENGTH: Final = 2 * KEY_LENGTH + 1  # hexadecimal digits and a line end


class Keychain:
    """The keys of the node whose seed lies at ``path``. Does no I/O until it is asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seed: bytes | None = None

    def __repr__(self) -> str:
        return f"Keychain({self._path}, seed=***)"

    async def hub_key(self, hub_public: str) -> SigningKey:
        """The node's key at the hub with this public key (text). Makes the seed if there is none yet.

        Raises ``corrupt-store`` for a damaged seed file, ``unreadable``.
        """
        if self._seed is None:
            self._seed = await asyncio.to_thread(self._load)
        return derive_node_key(self._seed, hub_public)

    def _load(self) -> bytes:
        found = read_document(self._path, 4096)
        if found is None:
            with contextlib.suppress(Conflict):  # another process was first: its seed counts
                write_document(self._path, secrets.token_hex(KEY_LENGTH).encode() + b"\n", replace=False)
            found = read_document(self._path, 4096) or b""
        text = found.strip()
        try:
            seed = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            seed = b""
        if len(found) > _TEXT_LENGTH or len(seed) != KEY_LENGTH:
            raise Corrupt(
                f"{self._path} does not hold a node's seed",
                kind="corrupt-store",
                hint="Restore it from a backup. Without it the node has to be invited again.",
                path=str(self._path),
            )
        return seed
