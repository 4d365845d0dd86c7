"""What happens to streams, told onwards: to the journal, to the metrics, and to the log with the transfer's id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from entrepot_hub.adapters.metrics import Metrics
from entrepot_hub.core.journal import Event, EventKind, Note

#: Of these a line is always logged; of all else only by a verbose hub, for there are many objects.
_TOLD: Final = frozenset({EventKind.CONDEMNED})


class Chronicle:
    """``listeners`` hear every event as it happened; ``metrics`` counts it; the log has a line of it, if it is
    ``verbose`` or the event a rare and bad one."""

    def __init__(self, metrics: Metrics, listeners: Sequence[Note] = (), *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._metrics = metrics
        self._listeners = tuple(listeners)
        self._log = structlog.get_logger("exchange")

    def note(self, event: Event) -> None:
        """Something happened to a stream."""
        for listener in self._listeners:
            listener(event)
        self._count(event)
        if event.kind in _TOLD:
            self._log.warning(event.kind.value, **_line(event))
        elif self._verbose:
            self._log.debug(event.kind.value, **_line(event))

    def _count(self, event: Event) -> None:
        metrics, node = self._metrics, event.node or ""
        match event.kind:
            case EventKind.SOUGHT:
                metrics.sought(event.channel)
            case EventKind.GRANTED:
                metrics.granted(event.channel, node)
            case EventKind.NO_ROOM:
                metrics.not_granted(event.channel, "quota")
            case EventKind.UPLOADED if event.transfer is not None or event.seconds:
                metrics.ended(event.channel, node, "done", event.seconds)
            case EventKind.FAILED:
                metrics.ended(event.channel, node, dict(event.detail).get("reason", "other"))
            case _:
                pass


def _line(event: Event) -> dict[str, object]:
    """The event as fields of a line; what says nothing is left out."""
    fields: dict[str, object] = {
        "transfer": None if event.transfer is None else event.transfer.hex(),
        "channel": event.channel,
        "stream": event.stream.hex(),
        "object": event.number,
        "node": event.node,
        "bytes": event.bytes or None,
        "seconds": round(event.seconds, 3) or None,
        **dict(event.detail),
    }
    return {name: value for name, value in fields.items() if value is not None}
