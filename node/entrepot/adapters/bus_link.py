"""One connection of nats-py, from open to close: the only module that touches nats-py and its errors.

A :class:`Link` never reconnects by itself. nats-py closes a client for good, without a word to ``error_cb``,
when its JWT expires or is revoked or a limit is passed; and a reconnect loop inside it cannot renew a JWT. So
:class:`entrepot.adapters.bus.Bus` supervises, and builds a new link whenever one has ended.

What nats-py does that this module guards against (nats-py 2.16):
- a cancellation that meets ``_flush_pending`` is swallowed: :func:`_guarded` raises it again;
- ``connect`` may go on for ever, ``close`` may wait for a peer that is gone: both have a deadline;
- ``flush`` writes its ping past what still waits for the flusher, so :meth:`Link.flush` waits for that first;
- ``tls://`` to a server that speaks plain text would connect in clear: TLS comes first, always;
- permission violations reach only ``error_cb``, in lower case: parsed here and handed to ``on_violation``;
- ``signature_cb`` must not raise: a refused nonce is signed with nothing and told by :meth:`Link.open`.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater
from entrepot.core.keyring import Credentials, sign_nonce

#: ``deliver(subject, payload, reply, unanswered)``; must not raise. ``unanswered``: the server's "no
#: responders".
type Deliver = Callable[[str, bytes, str | None, bool], None]
#: ``on_violation(verb, subject)``: verb is ``publish`` or ``subscription``, the subject in lower case.
type OnViolation = Callable[[str, str], None]

_LIBRARY_ERRORS: Final = (
    nats.errors.Error,
    aiohttp.ClientError,
    OSError,  # TimeoutError and ssl.SSLError among them
    EOFError,
    AssertionError,
    AttributeError,
    RuntimeError,
    ValueError,
)
#: What says no more than that there is no connection.
_NO_CONNECTION: Final = (
    ConnectionError,
    EOFError,
    nats.errors.NoServersError,
    nats.errors.ConnectionClosedError,
    nats.errors.StaleConnectionError,
)
_VIOLATION: Final = re.compile(r'permissions violation for (publish|subscription)[^"]*"([^"]*)"')
_REFUSED: Final = ("authorization", "authentication", "revoked", "expired")
_CLOSE_TIMEOUT: Final = 2.0  # seconds
_FAILED_CLOSE_TIMEOUT: Final = 0.2  # seconds; after a failed TLS handshake the stream never tells that it is closed
_LIBRARY_QUEUE: Final = 65536  # messages between nats-py's reader and our own queue, emptied at once


class Link:
    """One connection. ``open`` once, ``close`` any number of times; ``on_closed`` is told when it has
    ended.
    """

    def __init__(
        self,
        server: str,
        credentials: Credentials,
        *,
        name: str,
        connect_timeout: float,
        ping_interval: int,
        tls: ssl.SSLContext | None,
        on_violation: OnViolation,
        on_closed: Callable[[], None],
    ) -> None:
        self._server = server
        self._credentials = credentials
        self._name = name
        self._connect_timeout = connect_timeout
        self._ping_interval = ping_interval
        self._tls = tls
        self._on_violation = on_violation
        self._on_closed = on_closed
        self._client = Client()
        self._error: Exception | None = None
        self._nonce_error: InvalidInput | None = None
        self.dropped = 0  #: messages that nats-py itself dropped

    @property
    def closed(self) -> bool:
        """Whether the connection has ended; it will not come back."""
        return not self._client.is_connected

    @property
    def reason(self) -> EntrepotError:
        """Why the connection ended: Denied if the server refuses the credentials, else RetryLater."""
        return _translate(self._client.last_error or self._error or EOFError("closed by the server"), self._server)

    async def open(self) -> None:
        """Connect and log in. Raises Denied (credentials refused) or RetryLater ``bus-unreachable``."""
        tls_first = self._server.startswith("tls://")
        options: dict[str, Any] = {} if self._tls is None else {"tls": self._tls}
        try:
            async with asyncio.timeout(self._connect_timeout):
                await _guarded(
                    self._client.connect(
                        self._server,
                        name=self._name,
                        allow_reconnect=False,
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        connect_timeout=self._connect_timeout,  # type: ignore[arg-type]  # hinted an int
                        ping_interval=self._ping_interval,
                        max_outstanding_pings=2,
                        flush_timeout=self._connect_timeout,
                        tls_handshake_first=tls_first,
                        user_jwt_cb=self._jwt,
                        signature_cb=self._sign,
                        error_cb=self._note,
                        closed_cb=self._ended,
                        **options,
                    )
                )
            if not self._client.is_connected:
                raise nats.errors.ConnectionClosedError
        except _LIBRARY_ERRORS as error:
            cause = self._error if isinstance(error, nats.errors.NoServersError) and self._error else error
            await self._end(_FAILED_CLOSE_TIMEOUT)
            raise self._nonce_error or _translate(cause, self._server) from error
        except asyncio.CancelledError:
            await self._end(_FAILED_CLOSE_TIMEOUT)
            raise

    async def publish(self, subject: str, payload: bytes, reply: str | None = None) -> None:
        """Hand a message to the connection. Raises RetryLater when it has ended."""
        try:
            await _guarded(self._client.publish(subject, payload, reply or ""))
        except _LIBRARY_ERRORS as error:
            raise _translate(error, self._server) from error

    async def subscribe(self, subject: str, queue: str, deliver: Deliver) -> NatsSubscription:
        """Ask for messages. A refusal comes through ``on_violation``, before the next :meth:`flush`
        returns.
        """

        async def receive(message: Msg) -> None:
            headers = message.headers
            unanswered = not message.data and headers is not None and headers.get("Status") == "503"
            deliver(message.subject, bytes(message.data), message.reply or None, unanswered)

        try:
            return await _guarded(
                self._client.subscribe(subject, queue=queue, cb=receive, pending_msgs_limit=_LIBRARY_QUEUE)
            )
        except _LIBRARY_ERRORS as error:
            raise _translate(error, self._server) from error

    async def unsubscribe(self, handle: NatsSubscription) -> None:
        """Stop messages. That the connection has ended is no error: so have its subscriptions."""
        try:
            await _guarded(handle.unsubscribe())
        except (nats.errors.ConnectionClosedError, nats.errors.BadSubscriptionError):
            return
        except _LIBRARY_ERRORS as error:
            raise _translate(error, self._server) from error

    async def flush(self, seconds: float) -> None:
        """Return when the server has seen everything sent before. Raises RetryLater ``deadline`` after
        ``seconds``.
        """
        try:
            async with asyncio.timeout(seconds):
                while self._client.pending_data_size and not self.closed:  # noqa: ASYNC110  # it tells nobody
                    await asyncio.sleep(0.001)
                await _guarded(self._client.flush(timeout=max(1, round(seconds + 1))))
        except _LIBRARY_ERRORS as error:
            raise _translate(error, self._server) from error
        if self.closed:
            raise self.reason

    async def close(self) -> None:
        """End the connection; idempotent, at most two seconds, raises nothing."""
        await self._end(_CLOSE_TIMEOUT)

    async def _end(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._client.close()
        except _LIBRARY_ERRORS:
            writer = getattr(self._client._transport, "_io_writer", None)  # nothing public aborts
            if writer is not None:
                writer.transport.abort()

    def _jwt(self) -> bytes:
        return self._credentials.jwt.encode("ascii", "replace")

    def _sign(self, nonce: str) -> bytes:
        try:
            return base64.b64encode(sign_nonce(self._credentials.key, nonce))
        except InvalidInput as error:
            self._nonce_error = error
            return b""

    async def _note(self, error: Exception) -> None:
        found = _VIOLATION.search(str(error))
        if found:
            self._on_violation(found[1], found[2])
        elif isinstance(error, nats.errors.SlowConsumerError):
            self.dropped += 1
        else:
            self._error = error

    async def _ended(self) -> None:
        self._on_closed()


async def _guarded[T](awaitable: Awaitable[T]) -> T:
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    result = await awaitable
    if task.cancelling() > before:  # nats-py swallowed a cancellation
        raise asyncio.CancelledError
    return result


def _translate(error: Exception, server: str) -> EntrepotError:
    """The library's error as one of ours: the one place where that is done."""
    text = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
    match error:
        case nats.errors.MaxPayloadError():
            return InvalidInput(f"the message is too large for the bus at {server}", kind="invalid-message")
        case nats.errors.BadSubjectError():
            return InvalidInput("not a subject of the bus", kind="invalid-message")
        case TimeoutError():
            return RetryLater(f"the bus at {server} did not answer in time", kind="deadline", server=server)
        case nats.errors.AuthorizationError():
            return _refused(text, server)
        case nats.errors.Error() if any(word in text.lower() for word in _REFUSED):
            return _refused(text, server)
        case _:
            why = "" if isinstance(error, _NO_CONNECTION) or _is_connect(error) else f": {text}"
            return RetryLater(
                f"the hub's message bus at {server.partition('://')[2] or server} cannot be reached{why}",
                kind="bus-unreachable",
                hint="Repeat the command when the hub is back: it goes on where it was.",
                server=server,
                reason=text[:300],
            )


def _is_connect(error: Exception) -> bool:
    """Whether asyncio could connect to none of a name's addresses: it lists them all in one plain OSError."""
    return type(error) is OSError and "Connect call failed" in str(error)


def _refused(text: str, server: str) -> Denied:
    return Denied(f"the bus at {server} refuses this node: {text}", server=server)
