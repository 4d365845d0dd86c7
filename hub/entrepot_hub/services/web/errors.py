"""Every failure of a request becomes one answer: ``{"error": {kind, message, hint, data}}`` with a fitting
status.

What is not ours is logged with an id and answered ``internal`` with that id, and nothing else of it leaves
the hub.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Final

import msgspec
import structlog
from aiohttp import web

from entrepot.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    EntrepotError,
    Internal,
    InvalidInput,
    NotFound,
    RetryLater,
    to_wire,
)

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Denied because of who the caller is or claims to be, not of what it may do.
_UNAUTHENTICATED: Final = frozenset({"bad-signature", "replayed", "clock-skew"})
_STATUS: Final[tuple[tuple[type[EntrepotError], int], ...]] = (
    (NotFound, 404),
    (Denied, 403),
    (Conflict, 409),
    (RetryLater, 503),
    (Corrupt, 422),
    (InvalidInput, 400),
)
_RETRY_AFTER: Final = 2  # seconds, where nothing better is known
_TOO_MANY: Final = "too-many-requests"

_log = structlog.get_logger("entrepot_hub.web")


def status_of(error: EntrepotError) -> int:
    """The HTTP status of one of our errors."""
    if error.kind in _UNAUTHENTICATED:
        return 401
    if error.kind == _TOO_MANY:
        return 429
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def json_answer(value: object, *, status: int = 200) -> web.Response:
    """An answer in JSON."""
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def error_answer(error: EntrepotError, *, status: int | None = None) -> web.Response:
    """The answer that tells an error."""
    answer = json_answer({"error": to_wire(error)}, status=status_of(error) if status is None else status)
    if isinstance(error, RetryLater):
        after = error.data.get("retry_after")
        # Whole seconds are all that the header takes: rounded up, so that there is room by then.
        seconds = max(ceil(after), 1) if isinstance(after, int | float) else _RETRY_AFTER
        answer.headers["Retry-After"] = str(seconds)
    return answer


def faults(deadline: float, *, unlimited: tuple[str, ...] = ()) -> Callable[..., Awaitable[web.StreamResponse]]:
    """The outermost middleware: limits a request to ``deadline`` seconds, its body's arrival included, and
    turns every failure into an answer. Paths that begin with one of ``unlimited`` (bulk bytes) watch their
    own time."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        limit = None if unlimited and request.path.startswith(unlimited) else deadline
        try:
            async with asyncio.timeout(limit) as timer:
                return await handler(request)
        except EntrepotError as error:
            if isinstance(error, Internal):
                return _internal(request, error)
            return error_answer(error)
        except web.HTTPException as error:
            return _of_aiohttp(error)
        except TimeoutError as error:
            if not timer.expired():
                return _internal(request, error)
            return error_answer(RetryLater("the hub could not answer in time", kind="deadline", seconds=limit))
        except Exception as error:  # noqa: BLE001  # the last stop: logged in full, answered without detail
            return _internal(request, error)

    return middleware


def _internal(request: web.Request, error: Exception) -> web.Response:
    incident = secrets.token_hex(8)
    _log.error("request failed", incident=incident, method=request.method, route=_route(request), exc_info=error)
    return error_answer(
        Internal("the hub made a mistake", hint="Tell its admin the incident's number.", incident=incident)
    )


def _route(request: web.Request) -> str:
    """The route's pattern: a path may hold a secret (an invite)."""
    resource = request.match_info.route.resource
    return "?" if resource is None else resource.canonical


def _of_aiohttp(error: web.HTTPException) -> web.StreamResponse:
    """Aiohttp's own answers (no such path, method, too large a body) in our words."""
    status = error.status
    if status < 400:
        return error
    ours: EntrepotError
    if status == 404:
        ours = NotFound("there is nothing at this path")
    elif status == 405:
        ours = InvalidInput("this path does not take this method", kind="unsupported")
    elif status == 413:
        ours = InvalidInput("the request's body is too long")
    elif status >= 500:
        ours = RetryLater("the hub cannot answer just now")
    else:
        ours = InvalidInput(f"the request cannot be understood: {error.reason}")
    answer = error_answer(ours, status=status)
    if "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer
