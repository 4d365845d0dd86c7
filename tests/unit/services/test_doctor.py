"""What the doctor says of a disk and of a clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrepot.services.doctor import _clock, _disk


def test_a_disk_on_which_nothing_can_be_fetched_has_failed(tmp_path: Path) -> None:
    """Less free than what the store leaves free is a failure, with the exit code of a full disk."""
    full = _disk(tmp_path, 1 << 62)
    assert (full.outcome, full.error is not None and full.error.kind) == ("failure", "disk-full")
    assert full.error is not None
    assert full.error.exit_code == 6
    assert "are kept free" in full.text
    assert _disk(tmp_path, 0).error is None


@pytest.mark.parametrize(
    ("offset", "outcome", "text"),
    [
        (0.4, "ok", "as the hub's"),
        (-41.0, "warning", "41s ahead of the hub's"),
        (41.0, "warning", "41s behind the hub's"),
        (-301.0, "failure", "5m1s ahead of the hub's"),
    ],
)
def test_a_clock_that_is_off(offset: float, outcome: str, text: str) -> None:
    """It is said by how much and which way, and that signatures are refused only where they are."""
    check = _clock("hub", offset)
    assert (check.outcome, check.text) == (outcome, text)
    told = check.mend or ""
    assert ("beyond" in told, "signs is refused" in told) == (outcome == "warning", outcome != "ok")
