"""What happens in a node, as numbers for Prometheus. docs/metrics.md lists them all; a test compares.

Whoever does something tells :class:`Metrics`; that one forgets it, for commands, of which nobody asks.
:class:`NodeMetrics` counts, in a registry of its own. No label names a stream, a hub or a node.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from entrepot.adapters.files import translated
from entrepot.core.errors import KINDS

if TYPE_CHECKING:  # a command starts faster without it
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

#: How the exposition calls itself.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Seconds, each for one object.
UPLOAD_BUCKETS: Final = (1.0, 2.5, 5.0, 10.0, 20.0)
DOWNLOAD_BUCKETS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 15.0)
QUICK_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Of a download: what came does not prove itself.
_UNPROVEN: Final = frozenset({"corrupt", "corrupt-object", "wrong-length"})
_STATES: Final = ("connecting", "up", "down", "unreachable", "denied")

type Direction = Literal["up", "down"]


class Metrics:
    """What is told of a node as it happens. Telling never waits and never fails. Times are seconds, sizes bytes."""

    def sought(self) -> None:
        """A hub asked who has a stream."""

    def offered(self) -> None:
        """This node offered one."""

    def granted(self) -> None:
        """It was asked to upload an object."""

    def failed(self, kind: str) -> None:
        """An object that was granted was not uploaded, for this reason."""

    def moved(self, direction: Direction, outcome: str, size: int, seconds: float) -> None:
        """An object, or a part of one, was moved: ``ok`` or ``exists``, or the kind of the error that ended it; its
        bytes; seconds from its first attempt on."""

    def tried_again(self, direction: Direction) -> None:
        """An attempt to move an object failed, and another follows."""


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How many."""
        return time.perf_counter() - self._since


class NodeMetrics(Metrics):
    """Counts for one daemon. From the event loop's thread."""

    def __init__(self, instance: str = "") -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector

        self.registry = CollectorRegistry()
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._instance = instance
        self._reached: dict[tuple[Counter, str], float] = {}

        self._seeks = self._counter("entrepot_seeks", "Seeks heard")
        self._offers = self._counter("entrepot_offers", "Offers made")
        self._grants = self._counter("entrepot_grants", "Grants received")
        self._failures = self._counter("entrepot_grants_failed", "Grants that came to nothing, by why", "reason")
        self._uploads = self._counter("entrepot_uploads", "Objects sent, by what came of it", "outcome")
        self._upload_bytes = self._counter("entrepot_upload_bytes", "Bytes of objects sent to their end")
        self._downloads = self._counter("entrepot_downloads", "Objects fetched, by what came of it", "outcome")
        self._download_bytes = self._counter("entrepot_download_bytes", "Verified bytes fetched")
        self._upload_seconds = self._histogram(
            "external_storage_upload_duration_seconds", "Time to send an object", UPLOAD_BUCKETS
        )
        self._download_seconds = self._histogram(
            "external_storage_download_duration_seconds", "Time to fetch an object and verify it", DOWNLOAD_BUCKETS
        )
        self._unproven = self._counter("entrepot_verify_failures", "Bytes that did not prove themselves", "kind")
        self._retries = self._counter("entrepot_transfer_retries", "Further attempts at an object", "direction")
        self._lag = self._histogram("entrepot_event_loop_lag_seconds", "Lateness of the event loop", QUICK_BUCKETS)

        #: What is set when somebody looks.
        self.dropped = self._counter("entrepot_seeks_dropped", "Seeks that found too many waiting")
        self.connects = self._counter("entrepot_bus_connects", "Connections made to hubs' buses")
        self.losses = self._counter("entrepot_bus_losses", "Connections to hubs' buses that were lost")
        self.bus_dropped = self._counter("entrepot_bus_dropped", "Messages that found a full queue")
        self.streams = self._gauge("entrepot_store_streams", "Streams held")
        self.stored = self._gauge("entrepot_store_bytes", "Bytes that the store takes on the disk")
        self.linked = self._gauge("entrepot_store_linked_bytes", "Bytes of files that are held where they lie")
        self.uploading = self._gauge("entrepot_uploads_now", "Grants in work")
        self._hubs = self._gauge("entrepot_hubs", "Hubs that were joined, by how the daemon stands with them", "state")
        self._info = self._gauge("entrepot_info", "1, with what runs", "version", "instance")

    # -- what is told ---------------------------------------------------------------------------------------------

    def sought(self) -> None:
        """See :class:`Metrics`."""
        self._seeks.inc()

    def offered(self) -> None:
        """See :class:`Metrics`."""
        self._offers.inc()

    def granted(self) -> None:
        """See :class:`Metrics`."""
        self._grants.inc()

    def failed(self, kind: str) -> None:
        """See :class:`Metrics`."""
        self._failures.labels(_kind(kind)).inc()

    def moved(self, direction: Direction, outcome: str, size: int, seconds: float) -> None:
        """See :class:`Metrics`."""
        ok = outcome == "ok"
        if direction == "up":
            self._uploads.labels(_kind(outcome)).inc()
            if ok:
                self._upload_bytes.inc(size)
                self._upload_seconds.observe(seconds)
            return
        self._downloads.labels(_kind(outcome)).inc()
        self._download_bytes.inc(size)
        if ok:
            self._download_seconds.observe(seconds)
        elif outcome in _UNPROVEN:
            self._unproven.labels(outcome).inc()

    def tried_again(self, direction: Direction) -> None:
        """See :class:`Metrics`."""
        self._retries.labels(direction).inc()

    def lag(self, seconds: float) -> None:
        """The event loop came so much later than it should have."""
        self._lag.observe(seconds)

    # -- what is shown --------------------------------------------------------------------------------------------

    def runs(self, version: str) -> None:
        """Which version this is."""
        self._info.clear()
        self._info.labels(version, self._instance).set(1)

    def set_hubs(self, states: Iterable[str]) -> None:
        """How the daemon stands with each hub."""
        counts = dict.fromkeys(_STATES, 0)
        for state in states:
            counts[state] = counts.get(state, 0) + 1
        for state, count in counts.items():
            self._hubs.labels(state).set(count)

    def reach(self, counter: Counter, values: Mapping[str, float]) -> None:
        """Have a counter without labels grow by as much as those that it sums have grown, by name. One that is gone is
        forgotten."""
        for name, value in values.items():
            counter.inc(max(value - self._reached.get((counter, name), 0.0), 0.0))
        for key in [key for key in self._reached if key[0] is counter]:
            del self._reached[key]
        self._reached.update({(counter, name): value for name, value in values.items()})

    def exposition(self) -> bytes:
        """Everything that was counted, in Prometheus' text form."""
        return _text(_Told(self.registry))

    def write(self, path: Path) -> None:
        """Make a file of what was counted, in one step, for the textfile collector of node_exporter. What is set when
        somebody looks is not in it. Blocks. Raises what a file that cannot be written raises."""
        with translated(path):
            made = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                made.write_bytes(_text(_Told(self.registry, gauges=False)))
                made.replace(path)
            finally:
                made.unlink(missing_ok=True)

    def process(self) -> bytes:
        """What the system knows of this process, in the same form. Reads files: for a thread."""
        return _text(_Told(self._process))

    # -- how ------------------------------------------------------------------------------------------------------

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        from prometheus_client import Counter

        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        from prometheus_client import Gauge

        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        from prometheus_client import Histogram

        return Histogram(name, text, buckets=buckets, registry=self.registry)


class _Told:
    """A registry without the moments at which its counters were made: nobody asks for them."""

    def __init__(self, registry: CollectorRegistry, *, gauges: bool = True) -> None:
        self._registry = registry
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        """See ``CollectorRegistry``."""
        for metric in self._registry.collect():
            if metric.type == "gauge" and not self._gauges:
                continue
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def _text(told: _Told) -> bytes:
    from prometheus_client import generate_latest

    return generate_latest(told)


def _kind(outcome: str) -> str:
    """An outcome as a label: hubs may tell errors of any kind."""
    return outcome if outcome in {"ok", "exists"} or outcome in KINDS else "other"
