"""What happens in a hub, as numbers for Prometheus. docs/metrics.md lists them all; a test compares.

Whoever does something tells :class:`Metrics`, in the words of the exchange; that one forgets it, for parts that run
without a hub. :class:`HubMetrics` counts, in a registry of its own: several hubs may run in one process. No label names
a node or a stream, and only so many channels and routes have a label each.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from entrepot.core.errors import KINDS
from entrepot_hub.core.traffic import Traffic

#: How the exposition calls itself.
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
#: Seconds: of an upload, and of what a hub does quickly.
UPLOAD_BUCKETS: Final = (1.0, 2.5, 5.0, 10.0, 20.0)
QUICK_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Channels, and routes with their statuses, that have a label of their own; all further ones are ``other``.
MOST_LABELS: Final = 500
OTHER: Final = "other"


class Metrics:
    """What is told of a hub as it happens. Telling never waits and never fails. Times are seconds, sizes bytes."""

    def message(self, verb: str, channel: str, node: str, outcome: str, seconds: float) -> None:
        """A message of a node was handled. ``outcome``: ``ok``, or the kind of the error it was answered with."""

    def dropped(self, why: str, count: int = 1) -> None:
        """So many messages were not handled: ``rate`` (their sender says too much), ``node`` (too many of it wait),
        ``work`` (too much runs), ``subject`` or ``reply`` (not where it may be sent or answered)."""

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request of a node over HTTP was answered."""

    def sought(self, channel: str) -> None:
        """Holders of a stream were asked for."""

    def granted(self, channel: str, node: str) -> None:
        """A grant was made."""

    def not_granted(self, channel: str, why: str) -> None:
        """A proposal became no grant: the ledger's refusal, or ``limit``."""

    def lapsed(self, channel: str) -> None:
        """A lease ended by its time."""

    def ended(self, channel: str, node: str, why: str, seconds: float | None = None) -> None:
        """A grant ended: ``done`` (after so many seconds from its accept), or the kind of the error that ended it."""

    def arrived(self, channel: str, node: str, size: int) -> None:
        """An object became ready."""

    def evicted(self, channel: str, size: int) -> None:
        """An object left the bucket."""

    def lent(self, channel: str, node: str, size: int) -> None:
        """A node was told a signed GET."""

    def bucket(self, channel: str, operation: str, outcome: str, seconds: float) -> None:
        """The hub asked something of a bucket, or signed (``sign_put``, ``sign_get``). ``outcome``: as above."""

    def struck(self, channel: str, reason: str) -> None:
        """A node misbehaved."""

    def database(self, outcome: str, seconds: float) -> None:
        """A call of the database ended, its waiting included."""

    def lag(self, seconds: float) -> None:
        """The event loop came so much later than it should have."""


class HubMetrics(Metrics):
    """Counts for one hub. From the event loop's thread; ``traffic`` has the sums by channel and node."""

    def __init__(self, version: str = "", instance: str = "") -> None:
        self.registry = CollectorRegistry()
        self.traffic = Traffic()
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._known: dict[str, set[object]] = {"channel": set(), "route": set()}
        self._reached: dict[Counter, float] = {}
        gauge = self._gauge

        def counter(name: str, text: str, *labels: str) -> Any:
            made = self._counter(name, text, *labels)
            return _Children(made) if labels else made

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Any:
            made = self._histogram(name, text, buckets, *labels)
            return _Children(made) if labels else made

        self._messages = counter("entrepot_hub_messages", "Messages of nodes, by what came of them", "verb", "outcome")
        self._message_seconds = histogram(
            "entrepot_hub_message_seconds", "From taking up a message to its answer", QUICK_BUCKETS, "verb"
        )
        self._dropped = counter("entrepot_hub_messages_dropped", "Messages that were not handled", "reason")
        self._requests = histogram(
            "entrepot_hub_http_request_seconds", "Answers over HTTP", QUICK_BUCKETS, "method", "route", "status"
        )
        self._seeks = counter("entrepot_hub_seeks", "Seeks sent", "channel")
        self._grants = counter("entrepot_hub_grants", "Grants made", "channel")
        self._refusals = counter("entrepot_hub_grants_refused", "Proposals that became no grant", "channel", "reason")
        self._lapses = counter("entrepot_hub_leases_lapsed", "Leases that ended by their time", "channel")
        self._ends = counter("entrepot_hub_grants_ended", "Grants ended, by why", "channel", "reason")
        self._uploads = histogram(
            "external_storage_upload_duration_seconds",
            "From the accept of a grant to the object's being ready",
            UPLOAD_BUCKETS,
            "channel",
        )
        self._ready = counter("entrepot_hub_objects_ready", "Objects that arrived in the bucket", "channel")
        self._ready_bytes = counter("entrepot_hub_object_ready_bytes", "Bytes that arrived in the bucket", "channel")
        self._evictions = counter("entrepot_hub_objects_evicted", "Objects that left the bucket", "channel")
        self._evicted_bytes = counter("entrepot_hub_object_evicted_bytes", "Bytes that left the bucket", "channel")
        self._lent = counter("entrepot_hub_reads_signed", "Signed GETs that nodes were told", "channel")
        self._lent_bytes = counter("entrepot_hub_read_signed_bytes", "Bytes that they open", "channel")
        self._bucket_requests = counter(
            "entrepot_hub_bucket_requests", "The hub's own requests to buckets", "channel", "operation", "outcome"
        )
        self._bucket_seconds = histogram(
            "entrepot_hub_bucket_request_seconds", "How long they took", QUICK_BUCKETS, "operation"
        )
        self._signatures = counter("entrepot_hub_signatures", "URLs signed", "channel", "method", "outcome")
        self._strikes = counter("entrepot_hub_strikes", "Misbehaviour noted", "channel", "reason")
        self._database = histogram(
            "entrepot_hub_database_seconds", "Calls of the database, their waiting included", QUICK_BUCKETS, "outcome"
        )
        self._lag = histogram("entrepot_hub_event_loop_lag_seconds", "Lateness of the event loop", QUICK_BUCKETS)

        #: What is set when somebody looks.
        self.quota = gauge("entrepot_hub_channel_quota_bytes", "The channel's quota", "channel")
        self.stored = gauge("entrepot_hub_channel_stored_bytes", "Bytes in the channel's bucket", "channel")
        self.reserved = gauge("entrepot_hub_channel_reserved_bytes", "Bytes reserved for uploads", "channel")
        self.wants = gauge("entrepot_hub_channel_wants", "Wants that are open", "channel")
        self.uploading = gauge("entrepot_hub_channel_uploads", "Grants that are live", "channel")
        self.rounds = gauge("entrepot_hub_rounds", "Streams whose upload this hub arranges")
        self.sessions = gauge("entrepot_hub_sessions", "Sessions of nodes that are connected, as far as is known")
        self.waiting = gauge("entrepot_hub_messages_waiting", "Messages that wait to be handled")
        self.at_work = gauge("entrepot_hub_messages_at_work", "Messages in work")
        self.database_waiting = gauge("entrepot_hub_database_waiting", "Calls that wait for the database or run in it")
        self.tasks = gauge("entrepot_hub_background_tasks", "Pieces of work that nobody waits for")
        self.mistakes = counter("entrepot_hub_background_mistakes", "Mistakes of the hub: its log has them")
        self.refused = counter("entrepot_hub_background_refused", "Work that was not begun since too much ran")
        self.connected = gauge("entrepot_hub_nats_connected", "1 while the hub is connected to NATS")
        self.connects = counter("entrepot_hub_nats_connects", "Connections made to NATS")
        self.losses = counter("entrepot_hub_nats_losses", "Connections to NATS that were lost")
        self.bus_dropped = counter("entrepot_hub_nats_dropped", "Messages that found a full queue")
        self.ready_checks = gauge("entrepot_hub_ready", "1 while what the hub needs is there", "check")
        gauge("entrepot_hub_info", "1, with what runs", "version", "instance").labels(version, instance).set(1)

    # -- what is told ---------------------------------------------------------------------------------------------

    def message(self, verb: str, channel: str, node: str, outcome: str, seconds: float) -> None:
        """See :class:`Metrics`."""
        self._messages.labels(verb, _kind(outcome)).inc()
        self._message_seconds.labels(verb).observe(seconds)
        refused = int(outcome != "ok")
        self.traffic.of_channel(channel).add(messages=1, refused=refused)
        self.traffic.of_node(node).add(messages=1, refused=refused)

    def dropped(self, why: str, count: int = 1) -> None:
        """See :class:`Metrics`."""
        self._dropped.labels(why).inc(count)

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """See :class:`Metrics`."""
        label = (method, route, status)
        if not self._has_label("route", label):
            method = route = OTHER
        self._requests.labels(method, route, str(status)).observe(seconds)

    def sought(self, channel: str) -> None:
        """See :class:`Metrics`."""
        self._seeks.labels(self._channel(channel)).inc()

    def granted(self, channel: str, node: str) -> None:
        """See :class:`Metrics`."""
        self._grants.labels(self._channel(channel)).inc()
        self.traffic.of_channel(channel).add(grants=1)
        self.traffic.of_node(node).add(grants=1)

    def not_granted(self, channel: str, why: str) -> None:
        """See :class:`Metrics`."""
        self._refusals.labels(self._channel(channel), why).inc()

    def lapsed(self, channel: str) -> None:
        """See :class:`Metrics`."""
        self._lapses.labels(self._channel(channel)).inc()

    def ended(self, channel: str, node: str, why: str, seconds: float | None = None) -> None:
        """See :class:`Metrics`."""
        label = self._channel(channel)
        self._ends.labels(label, "done" if why == "done" else _kind(why)).inc()
        if seconds is not None:
            self._uploads.labels(label).observe(seconds)
        if why != "done":
            self.traffic.of_channel(channel).add(failed=1)
            self.traffic.of_node(node).add(failed=1)

    def arrived(self, channel: str, node: str, size: int) -> None:
        """See :class:`Metrics`."""
        label = self._channel(channel)
        self._ready.labels(label).inc()
        self._ready_bytes.labels(label).inc(size)
        self.traffic.of_channel(channel).add(uploads=1, uploaded=size)
        self.traffic.of_node(node).add(uploads=1, uploaded=size)

    def evicted(self, channel: str, size: int) -> None:
        """See :class:`Metrics`."""
        label = self._channel(channel)
        self._evictions.labels(label).inc()
        self._evicted_bytes.labels(label).inc(size)
        self.traffic.of_channel(channel).add(evicted=size)

    def lent(self, channel: str, node: str, size: int) -> None:
        """See :class:`Metrics`."""
        label = self._channel(channel)
        self._lent.labels(label).inc()
        self._lent_bytes.labels(label).inc(size)
        self.traffic.of_channel(channel).add(downloads=1, downloaded=size)
        self.traffic.of_node(node).add(downloads=1, downloaded=size)

    def bucket(self, channel: str, operation: str, outcome: str, seconds: float) -> None:
        """See :class:`Metrics`."""
        label, outcome = self._channel(channel), _kind(outcome)
        if operation.startswith("sign_"):
            self._signatures.labels(label, operation[5:], outcome).inc()
            return
        self._bucket_requests.labels(label, operation, outcome).inc()
        self._bucket_seconds.labels(operation).observe(seconds)
        # What is not there, or is another by now, is an answer as good as any.
        failed = int(outcome not in {"ok", "changed", "no-such-object", "not-found", "conflict"})
        self.traffic.of_channel(channel).add(requests=1, request_failures=failed, request_seconds=seconds)

    def struck(self, channel: str, reason: str) -> None:
        """See :class:`Metrics`."""
        self._strikes.labels(self._channel(channel), reason).inc()

    def database(self, outcome: str, seconds: float) -> None:
        """See :class:`Metrics`."""
        self._database.labels(_kind(outcome)).observe(seconds)

    def lag(self, seconds: float) -> None:
        """See :class:`Metrics`."""
        self._lag.observe(seconds)

    # -- what is shown --------------------------------------------------------------------------------------------

    def set_all(self, gauge: Gauge, values: Mapping[str, float]) -> None:
        """A gauge's values by its one label, and no others than these; those of further channels are summed."""
        gauge.clear()
        for name, value in values.items():
            gauge.labels(name if gauge is self.ready_checks else self._channel(name)).inc(value)

    def reach(self, counter: Counter, value: float) -> None:
        """Have a counter without labels stand where somebody else has counted to."""
        counter.inc(max(value - self._reached.get(counter, 0.0), 0.0))
        self._reached[counter] = value

    def families(self) -> Iterator[Metric]:
        """Everything that was counted, one metric after another as it is asked for: of many channels all of it takes a
        while, and between two there is time for others."""
        for metric in self.registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric

    def render(self, families: Iterable[Metric]) -> bytes:
        """These, and what the system knows of this process, in Prometheus' text form. For a thread."""
        return generate_latest(_Collected([*families, *self._process.collect()]))

    def exposition(self) -> bytes:
        """All of it at once."""
        return self.render(self.families())

    # -- how ------------------------------------------------------------------------------------------------------

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _channel(self, name: str) -> str:
        return name if self._has_label("channel", name) else OTHER

    def _has_label(self, what: str, value: object) -> bool:
        known = self._known[what]
        if value not in known:
            if len(known) >= MOST_LABELS:
                return False
            known.add(value)
        return True


class _Children:
    """A metric with labels that remembers its children: the library makes new strings and takes a lock to find one.
    There are no more of them than labels are let through."""

    def __init__(self, metric: Counter | Histogram) -> None:
        self._metric = metric
        self._known: dict[tuple[str, ...], Any] = {}

    def labels(self, *values: str) -> Any:
        """The child with these values."""
        child = self._known.get(values)
        if child is None:
            child = self._known[values] = self._metric.labels(*values)
        return child


class _Collected:
    """What was collected, in the form that the library renders."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """See ``CollectorRegistry``."""
        return self._metrics


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How many."""
        return time.perf_counter() - self._since


def _kind(outcome: str) -> str:
    """An outcome as a label: errors that nodes told may have any kind."""
    return outcome if outcome == "ok" or outcome in KINDS else OTHER
