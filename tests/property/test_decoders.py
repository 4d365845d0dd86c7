"""Every decoder of bytes from outside takes any bytes: a value, or one of our errors, in bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from tests.fuzz.mutations import inputs
from tests.fuzz.table import TARGETS
from tests.fuzz.targets import Finding, Target, attempt, look

each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
#: A hundred times as many in the long profile.
EXAMPLES = 200 * max(settings().max_examples // 50, 1)
#: What a decoder may hold at its peak, beside sixty times its input.
_ROOM = 6 << 20


@each_target
def test_the_samples_are_taken(target: Target) -> None:
    """Each decoder takes what it is for, so that damaged input is not refused for a silly reason."""
    taken = [attempt(target, sample) for sample in target.samples()]
    assert any(taken) or target.name == "bucket's answer"  # which tells the meaning of a refusal


@pytest.mark.blocking
@each_target
def test_any_bytes_give_a_value_or_our_error(target: Target, report: Callable[..., None]) -> None:
    """Random and damaged input ends in a value that keeps its promises or in an error of ours that can be told."""
    samples = target.samples()
    count = 0

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(inputs(samples))
    def search(data: bytes) -> None:
        nonlocal count
        count += 1
        look(target, data)

    try:
        search()
    except Finding as finding:
        pytest.fail(str(finding), pytrace=False)
    report("fuzz", decoder=target.name, inputs=count, outcome="a value or our error")


@pytest.mark.blocking
@each_target
def test_memory_is_bounded_by_the_input(target: Target) -> None:
    """No input, long, repetitive or deep as it may be, makes a decoder hold much more than what it was given."""
    samples = target.samples()
    for sample in samples:
        attempt(target, sample)  # what is imported and kept at the first use does not count
    tracemalloc.start()
    try:
        for data in [grown for sample in samples[:8] for grown in _grown(sample)]:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            look(target, data)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < _ROOM + 60 * len(data), f"{peak - before} bytes for {data[:99]!r}, {len(data)} long"
    except Finding as finding:
        pytest.fail(str(finding), pytrace=False)
    finally:
        tracemalloc.stop()


def _grown(sample: bytes) -> Iterator[bytes]:
    """The sample, longer in all the ways that have cost a parser dear."""
    half = sample[: len(sample) // 2 + 1]
    yield sample * (100_000 // (len(sample) or 1))
    for filling in (b"[", b'{"a":', b"9", b"a", b"%41", b"\xff", b".", b"-", b"\n", b"1:", b"\x91"):
        yield half + filling * (30_000 // len(filling)) + sample[len(half) :]
        yield sample[:1] + filling * (30_000 // len(filling))
