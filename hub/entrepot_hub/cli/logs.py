"""The log: lines on the standard error, for people or in JSON."""

from __future__ import annotations

import logging
import sys
import time

import structlog

from entrepot_hub.core.rates import Tally


def set_up_logs(*, as_json: bool, verbose: bool = False) -> None:
    """Log what is of interest to an admin, and libraries' warnings, to the standard error; if it is ``verbose``, also
    every step of every transfer. No traceback shows the values of variables: they may be secrets."""
    tell: structlog.typing.Processor
    if as_json:
        tell = structlog.processors.JSONRenderer()
        trace: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    else:
        tell = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        trace = []
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, *trace, tell],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *trace, tell],
    )
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    server = logging.getLogger("aiohttp.server")
    server.filters = [Seldom()]


class Seldom(logging.Filter):
    """Lets one line a minute pass of each kind of error. What strangers send that is no HTTP makes one each time: of
    that no traceback is told."""

    def __init__(self) -> None:
        super().__init__()
        self._tally = Tally()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is told; it then says how many it stands for."""
        from aiohttp.http_exceptions import HttpProcessingError

        error = record.exc_info[1] if record.exc_info else None
        kind = type(error).__name__
        count = self._tally.note(f"{record.msg} {kind}", time.monotonic())
        if not count:
            return False
        record.msg, record.args = f"{record.getMessage()}: {kind} (%d times)", (count,)
        if isinstance(error, HttpProcessingError):
            record.exc_info = record.exc_text = None
        return True
