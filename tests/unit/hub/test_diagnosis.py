"""What a doctor says of facts: every trouble is named, with its mend."""

from __future__ import annotations

from dataclasses import replace

import pytest

from entrepot_hub.adapters.buckets.interface import Binds, Facts
from entrepot_hub.services.diagnosis import Check, Diagnosis, Outcome, of_binds, of_facts, of_latency, of_quota

ALL = Binds(
    length=True,
    digest=True,
    create_only=True,
    expiry=True,
    head_digest=True,
    get_if=True,
    delete_if=True,
    replace_if=True,
)
GOOD = Facts(
    region="eu-central-1",
    versioning=False,
    soft_delete=0.0,
    object_lock=False,
    lifecycle=(),
    storage_class="STANDARD",
    cors=False,
    public_read=False,
    public_write=False,
    clock_skew=0.4,
)


def outcomes(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.outcome for check in checks}


def test_a_good_bucket_has_no_complaint() -> None:
    """All is well and nothing is to be mended."""
    checks = [*of_binds(ALL), *of_facts(GOOD, public_read=False, region="eu-central-1")]
    assert set(outcomes(checks).values()) == {"ok"}
    assert not any(check.mend for check in checks)


@pytest.mark.parametrize("name", Binds.__dataclass_fields__)
def test_what_is_not_bound_is_told_with_its_mend(name: str) -> None:
    """Each thing that the provider does not enforce has a line that is not ok and says what follows."""
    check = next(c for c in of_binds(replace(ALL, **{name: False})) if c.outcome != "ok")
    assert check.name == name.replace("_", " ")
    assert check.mend


@pytest.mark.parametrize(
    ("facts", "name", "outcome"),
    [
        (replace(GOOD, versioning=True), "versioning", "warning"),
        (replace(GOOD, soft_delete=604_800.0), "soft delete", "warning"),
        (replace(GOOD, object_lock=True), "object lock", "failure"),
        (replace(GOOD, lifecycle=("expires objects after 1 day",)), "lifecycle", "warning"),
        (replace(GOOD, storage_class="GLACIER_IR"), "storage class", "warning"),
        (replace(GOOD, storage_class="Cool"), "storage class", "warning"),
        (replace(GOOD, region="us-east-1"), "region", "warning"),
        (replace(GOOD, public_read=True), "public read", "failure"),
        (replace(GOOD, public_write=True), "public write", "failure"),
        (replace(GOOD, clock_skew=-90.0), "clock", "warning"),
        (replace(GOOD, clock_skew=400.0), "clock", "failure"),
        (replace(GOOD, versioning=None, unknown={"versioning": "s3:GetBucketVersioning is denied"}), "versioning",
         "unknown"),
    ],
)  # fmt: skip
def test_each_trouble_is_named(facts: Facts, name: str, outcome: str) -> None:
    """One fact out of order is one line out of order, and nothing else."""
    found = outcomes(of_facts(facts, public_read=False, region="eu-central-1"))
    assert found.pop(name) == outcome
    assert set(found.values()) == {"ok"}


def test_what_was_not_tried_now_is_said_to_be_older() -> None:
    """A look without uploads does not claim to have tried what is bound."""
    assert all(check.text.endswith(", as found before") for check in of_binds(ALL, tried=False))
    assert not any("before" in check.text for check in of_binds(ALL))


def test_a_reason_is_given_once() -> None:
    """Where two questions failed alike the reason is told once, in the words that say more."""
    facts = Facts(unknown={"public_read": "it does not answer (501); it does not answer; it does not answer (501)"})
    assert [check.text for check in of_facts(facts, public_read=False, region=None)] == [
        "not known: it does not answer (501)"
    ]


def test_a_public_channel_wants_a_public_bucket() -> None:
    """What is declared and what is there are compared both ways."""
    assert outcomes(of_facts(replace(GOOD, public_read=True), public_read=True, region=None))["public read"] == "ok"
    assert outcomes(of_facts(GOOD, public_read=True, region=None))["public read"] == "warning"


def test_the_quota_wants_room_for_three_of_the_largest() -> None:
    """Under three times the largest stream a larger quota is advised, in whole objects."""
    assert of_quota(300, 100, 10).outcome == "ok"
    unasked = of_quota(10, 0, 10)
    assert (unasked.outcome, "up to" in unasked.text) == ("ok", False)
    advice = of_quota(299, 100, 64)
    assert advice.outcome == "note"
    assert advice.mend is not None
    assert "320 B" in advice.mend
    assert "flows through" in of_quota(99, 100, 10).text


def test_a_slow_bucket_is_told() -> None:
    """A look of a second and more is worth a warning."""
    assert of_latency(0.02).outcome == "ok"
    assert of_latency(1.5).outcome == "warning"


def test_the_worst_outcome_counts() -> None:
    """A failure outweighs whatever else there is."""
    outcomes: tuple[Outcome, ...] = ("ok", "warning", "failure", "unknown")
    checks = [Check(name=outcome, outcome=outcome, text="") for outcome in outcomes]
    assert Diagnosis(channel="c", bucket="b", checks=checks, binds={}).worst == "failure"
    assert Diagnosis(channel="c", bucket="b", checks=checks[:2], binds={}).worst == "warning"
    assert Diagnosis(channel="c", bucket="b", checks=[], binds={}).worst == "ok"
