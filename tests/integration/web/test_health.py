"""Whether the hub is alive, and whether it can work."""

from __future__ import annotations

import asyncio

from entrepot.core.errors import RetryLater
from entrepot_hub.cli.hub import _missing


class Probes:
    def __init__(self):
        self.looks = 0
        self.error = None
        self.now = 0.0

    async def database(self):
        self.looks += 1
        if self.error is not None:
            raise self.error

    async def bucket(self):
        pass


async def ready(http, hub):
    async with http.get(f"{hub.url}/readyz") as response:
        return response.status, await response.json()


async def test_alive_is_not_ready(make_hub, http):
    """/healthz answers whatever is missing; /readyz says what it is, by kind and no more."""
    probes = Probes()
    probes.error = RetryLater("the password is hunter2", kind="bus-unreachable")
    hub = await make_hub(checks={"nats": probes.database, "bucket": probes.bucket})
    async with http.get(f"{hub.url}/healthz") as response:
        assert (response.status, await response.json()) == (200, {"status": "ok"})
    status, answer = await ready(http, hub)
    assert status == 503
    assert answer == {"ready": False, "checks": {"nats": "bus-unreachable", "bucket": "ok"}}


async def test_a_warning_is_shown_and_is_no_reason_to_stop(make_hub, http):
    """What nodes will stumble over is named beside the checks; the hub is ready nevertheless."""
    hub = await make_hub(warnings=("nats-address",))
    assert await ready(http, hub) == (200, {"ready": True, "checks": {}, "warnings": ["nats-address"]})


async def test_what_the_hub_can_do_without_leaves_it_ready(make_hub, http):
    """A lesser check that fails is told as degraded, by page and by exit code no reason to restart; others are."""
    probes = Probes()
    probes.error = RetryLater("gone", kind="bucket-unreachable")
    checks = {"buckets": probes.database, "nats": probes.bucket}
    hub = await make_hub(checks=checks, lesser=("buckets",))
    status, answer = await ready(http, hub)
    assert (status, answer) == (200, {"ready": True, "checks": {"buckets": "degraded", "nats": "ok"}})
    assert _missing(answer["checks"]) is None
    assert _missing(answer["checks"] | {"nats": "bus-unreachable"}) is not None


async def test_a_look_counts_for_a_second(make_hub, http):
    """Many askers cause one look; after a second it is looked anew."""
    probes = Probes()
    hub = await make_hub(checks={"database": probes.database}, readiness_clock=lambda: probes.now)
    answers = await asyncio.gather(*(ready(http, hub) for _ in range(20)))
    assert {status for status, _ in answers} == {200}
    assert probes.looks == 1
    probes.error = RetryLater("gone")
    probes.now = 0.5
    assert (await ready(http, hub))[0] == 200
    probes.now = 1.0
    assert (await ready(http, hub))[0] == 503
    probes.error = None
    probes.now = 2.0
    assert (await ready(http, hub))[0] == 200
    assert probes.looks == 3
