"""The log of a daemon: lines on the standard error, for people or in JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any


def set_up_logs(*, as_json: bool = False, verbose: bool = False, quiet: bool = False) -> None:
    """Log what the daemon tells to the standard error; if it is ``verbose`` every step of every upload, if it is
    ``quiet`` only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log = logging.getLogger("entrepot")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What was told beside the message, without what says nothing."""
    fields: dict[str, Any] = getattr(record, "fields", {})
    return {name: value for name, value in fields.items() if value is not None}


class _Text(logging.Formatter):
    """The message, and its fields behind it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the library's name
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        return super().formatMessage(record) + fields


class _Json(logging.Formatter):
    """One object a line, with the same names as in the hub's log."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            **_fields(record),
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "timestamp": f"{moment}.{int(record.msecs):03d}Z",
            "logger": record.name,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
