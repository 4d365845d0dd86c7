"""The table in docs/buckets.md says what the probes of this very run found. ``scripts/bucket-matrix`` writes it."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest
from tests.contract.buckets.conftest import KINDS

from entrepot_hub.adapters.buckets import Binds, Bucket

PAGE = Path(__file__).resolve().parents[3] / "docs" / "buckets.md"
BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"
#: The order of the columns, and what they are called.
COLUMNS = {
    "length": "length",
    "digest": "digest",
    "create_only": "create-only",
    "expiry": "expiry",
    "head_digest": "HEAD shows digest",
    "get_if": "GET by etag",
    "delete_if": "delete by etag",
    "replace_if": "replace by etag",
}
HEADING = f"| server of the tests | kind of digest | {' | '.join(COLUMNS.values())} |\n{'|---' * (len(COLUMNS) + 2)}|\n"
WRITE = os.environ.get("BUCKET_MATRIX") == "write"

pytestmark = pytest.mark.blocking


def row(kind: str, bucket: Bucket) -> str:
    """The line of the table."""
    held = " | ".join("yes" if getattr(bucket.binds, name) else "**no**" for name in COLUMNS)
    return f"| {kind} | {bucket.digest_kind} | {held} |\n"


def parts() -> tuple[str, dict[str, str], str]:
    """The page: what stands before the table's rows, the rows by kind, what stands after them."""
    page = PAGE.read_text()
    before, found, rest = page.partition(BEGIN + HEADING)
    table, ended, after = rest.partition(END)
    assert found, f"{PAGE.name} has no matrix, or one with other columns"
    assert ended, f"{PAGE.name} has a matrix without an end"
    lines = table.splitlines(keepends=True)
    return before + found, {line.split("|")[1].strip(): line for line in lines}, ended + after


async def test_the_page_says_what_the_probe_finds(bucket: Bucket, kind: str, base: str) -> None:
    """Each line of the documented matrix is what the probe finds now."""
    if kind == "folder":  # the others have been probed when the fixture was made
        await bucket.probe(base)
    before, rows, after = parts()
    if WRITE:
        rows[kind] = row(kind, bucket)
        PAGE.write_text(before + "".join(rows[name] for name in KINDS if name in rows) + after)
    assert rows.get(kind) == row(kind, bucket), "run scripts/bucket-matrix"


def test_the_page_lists_every_kind() -> None:
    """The matrix has one line for each kind of bucket that the suite knows, and a column for all that can be bound."""
    if not WRITE:
        assert list(parts()[1]) == list(KINDS), "run scripts/bucket-matrix"
    assert set(COLUMNS) == {field.name for field in fields(Binds)}
