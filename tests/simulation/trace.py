"""What happened in a world, in order: to be compared between runs, and to be read."""

from __future__ import annotations

import hashlib

#: Lines that are kept; all count for the digest.
MOST = 200_000


class Trace:
    """Lines of (time, who, what)."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, str, str]] = []

    def add(self, now: float, who: str, what: str) -> None:
        """It happened."""
        if len(self.lines) < MOST:
            self.lines.append((now, who, what))

    def digest(self) -> str:
        """The same for the same history."""
        hasher = hashlib.sha256()
        for now, who, what in self.lines:
            hasher.update(f"{now:.9f} {who} {what}\n".encode())
        return hasher.hexdigest()

    def text(self, last: int = 60) -> list[str]:
        """The end of it, for people."""
        return [f"{now:9.3f}  {who:<8} {what}" for now, who, what in self.lines[-last:]]
