"""A node's connection to one hub's HTTP API: every request signed afresh, every failure one of ours.

Only the control plane goes this way; bulk bytes take the signed URLs of the bucket.
"""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from entrepot.core.api import (
    MAX_ANSWER,
    Answer,
    Body,
    ChannelDetail,
    FaultAnswer,
    GrantRequest,
    HubInfo,
    InviteRequest,
    Joined,
    JoinRequest,
    MemberView,
    NewInvite,
    ReadTrial,
    SessionInfo,
    SessionRequest,
    StreamInfo,
    Timeline,
)
from entrepot.core.errors import Denied, EntrepotError, InvalidInput, RetryLater, from_wire
from entrepot.core.identifiers import StreamId
from entrepot.core.invite import CHALLENGE_LENGTH, Invite, check_origin, hub_statement, join_proof
from entrepot.core.nkeys import SigningKey, verify
from entrepot.core.signing import WINDOW, check_clock, sign_request

_NONCE_BYTES: Final = 16
_JSON: Final = "application/json"
#: Kinds by which a hub says that it did not even look at a request, if they tell when it will.
_UNHEARD: Final = frozenset({"too-many-requests", "busy"})
_TOO_MANY: Final = 429
_SECONDS: Final = re.compile(r"[0-9]{1,6}")
#: What aiohttp and the system raise when a request comes to nothing.
_FAILURES: Final = (aiohttp.ClientError, OSError, UnicodeError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubClientSettings:
    """How to reach a hub. Times in seconds.

    ``ca_file``: certificates (PEM) to trust beside the system's. ``proxy``: URL of an HTTP proxy; it may hold
    a password and is not shown. ``plain``: take ``http://`` for other machines than this one too. ``patience``: how
    long a call waits in all while the hub says that it has no room for it.
    """

    connect_timeout: float = 10.0
    timeout: float = 30.0
    patience: float = 20.0
    ca_file: str | None = None
    proxy: str | None = field(default=None, repr=False)
    plain: bool = False


class HubClient:
    """Calls one hub. Use it with ``async with``; one client serves many tasks.

    ``url`` is the hub's origin, ``key`` the node's key at this hub, ``hub_public`` the hub's public key
    (text) as the invite named it: an answer of another hub is refused. ``clock`` tells unix seconds.

    Every method raises :class:`RetryLater` (``hub-unreachable``, ``deadline``), :class:`Denied`, or what the
    hub answered; never an error of the HTTP library. Every call may be repeated.
    """

    def __init__(
        self,
        url: str,
        key: SigningKey,
        hub_public: str,
        settings: HubClientSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings or HubClientSettings()
        self.url = check_origin(url, plain=self._settings.plain)
        self.hub_public = hub_public
        self._key = key
        self._clock = clock
        self._http: aiohttp.ClientSession | None = None
        #: Seconds by which the hub's clock was ahead of ours at its last answer; None before the first.
        self.clock_offset: float | None = None

    async def __aenter__(self) -> Self:
        settings = self._settings
        context = await asyncio.to_thread(_tls, settings.ca_file) if self.url.startswith("https:") else None
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=8, ssl=context if context is not None else True),
            timeout=aiohttp.ClientTimeout(total=settings.timeout, connect=settings.connect_timeout),
            headers={"Accept": _JSON, "User-Agent": "entrepot"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def hub(self) -> HubInfo:
        """Which hub answers at this address, unsigned. Denied (``denied``) if it is not the expected one, or does not
        prove it: anybody can name another hub's key, and a node must not take a stranger's address for a hub's."""
        challenge = secrets.token_bytes(CHALLENGE_LENGTH)
        query = f"challenge={challenge.hex()}&address={quote(self.url, safe='')}"
        info = await self._call("GET", f"/v1/hub?{query}", None, HubInfo, signed=False)
        self._expect(info.hub)
        if not verify(self.hub_public, hub_statement(challenge, self.url), bytes.fromhex(info.proof)):
            raise Denied(
                f"{self.url} does not prove that it is the hub of the invite",
                hint="Was the invite made by the hub itself, and does the hub know itself by this address?",
                expected=self.hub_public,
            )
        return info

    async def join(self, invite: Invite, name: str) -> Joined:
        """Take up an invite under ``name``. The same key may repeat it. Denied (``bad-invite``,
        ``expired``), and where another hub answers than the one that made the invite, which is shown nothing."""
        if invite.hub_public != self.hub_public:
            raise Denied("this invite is for another hub", kind="bad-invite", hint="Ask for a new invite.")
        await self.hub()
        request = JoinRequest(
            invite=invite.id.hex(),
            node=self._key.public,
            mac=join_proof(invite.secret, self._key.public, self.hub_public).hex(),
            name=name,
        )
        joined = await self._call("POST", "/v1/join", request, Joined, signed=False)
        self._expect(joined.hub)
        return joined

    async def session(self) -> SessionInfo:
        """All that this node needs to work: NATS login, servers, channels with their locks and rights."""
        info = await self._call("POST", "/v1/session", SessionRequest(), SessionInfo)
        self._expect(info.hub)
        if info.node != self._key.public:
            raise Denied("the hub answered with the session of another node", node=info.node)
        return info

    async def stream_info(self, channel: str, stream: StreamId) -> StreamInfo:
        """What the hub knows of a stream. NotFound (``no-such-channel``, ``no-such-stream``)."""
        return await self._call("GET", f"/v1/channels/{quote(channel, safe='')}/streams/{stream}", None, StreamInfo)

    async def timeline(self, channel: str, stream: StreamId) -> Timeline:
        """What happened to a stream. NotFound (``no-such-channel``, ``no-such-stream``)."""
        path = f"/v1/channels/{quote(channel, safe='')}/streams/{stream}/timeline"
        return await self._call("GET", path, None, Timeline)

    async def read_trial(self, channel: str) -> ReadTrial:
        """A signed GET by which to find out whether this node reaches the channel's bucket."""
        return await self._call("GET", f"/v1/channels/{quote(channel, safe='')}/trial", None, ReadTrial)

    # -- what owners do --------------------------------------------------------------------------------------

    async def channel(self, channel: str) -> ChannelDetail:
        """One's own channel with its members and invites. Denied (``no-right``) for who is no owner of it."""
        return await self._call("GET", f"/v1/channels/{quote(channel, safe='')}", None, ChannelDetail)

    async def create_invite(
        self, channel: str, *, uses: int = 1, life: float = 7 * 86_400, rights: str = "request,provide"
    ) -> NewInvite:
        """A new invite for ``uses`` nodes, good for ``life`` seconds. Repeating it makes another."""
        path = f"/v1/channels/{quote(channel, safe='')}/invites"
        return await self._call("POST", path, InviteRequest(uses=uses, life=life, rights=rights), NewInvite)

    async def grant(self, channel: str, node: str, rights: str) -> MemberView:
        """Give a member (its key or name), present or past, exactly these rights."""
        return await self._call("PUT", _member_path(channel, node), GrantRequest(rights=rights), MemberView)

    async def revoke(self, channel: str, node: str) -> MemberView:
        """Take all rights in the channel from a member (its key or name)."""
        return await self._call("DELETE", _member_path(channel, node), None, MemberView)

    async def _call[A: Answer](
        self, method: str, path: str, request: Body | None, answer: type[A], *, signed: bool = True
    ) -> A:
        """Ask; and where the hub, before it did anything, says when there is room, ask again then, signed anew."""
        left = self._settings.patience
        while True:
            try:
                return await self._ask(method, path, request, answer, signed=signed)
            except RetryLater as error:
                if error.kind not in _UNHEARD and error.data.get("status") != _TOO_MANY:
                    raise
                after = error.data.get("retry_after")
                # Never less than a little and never exactly then: many may have been told the same.
                pause = max(after, 0.05) + secrets.randbelow(250) / 1000 if isinstance(after, int | float) else None
                if pause is None or not pause <= left:
                    raise
            left -= pause
            await asyncio.sleep(pause)

    async def _ask[A: Answer](
        self, method: str, path: str, request: Body | None, answer: type[A], *, signed: bool
    ) -> A:
        http = self._http
        if http is None or http.closed:
            raise RetryLater("the connection to the hub is closed", kind="hub-unreachable", hub=self.url)
        url = URL(self.url + path, encoded=True)
        body = b"" if request is None else msgspec.json.encode(request)
        headers = {"Content-Type": _JSON} if body else {}
        if signed:
            nonce = base64.urlsafe_b64encode(secrets.token_bytes(_NONCE_BYTES)).rstrip(b"=").decode()
            sign_request(method, str(url), headers, body, key=self._key, nonce=nonce, now=self._clock())
        try:
            async with http.request(
                method,
                url,
                data=body or None,
                headers=headers,
                proxy=self._settings.proxy,
                allow_redirects=False,
            ) as response:
                self._note_time(response.headers.get("Date"))
                status, data = response.status, await _read(response)
                after = response.headers.get("Retry-After", "")
        except aiohttp.ConnectionTimeoutError:
            raise RetryLater(
                f"the hub at {self.url} cannot be reached: nothing answers there",
                kind="hub-unreachable",
                hint="Is the hub running, and does this network let you reach it?",
                hub=self.url,
                seconds=self._settings.connect_timeout,
            ) from None
        except TimeoutError:
            raise RetryLater(
                "the hub did not answer in time", kind="deadline", hub=self.url, seconds=self._settings.timeout
            ) from None
        except _FAILURES as error:
            raise self._translated(error) from None
        if 200 <= status < 300:
            try:
                return msgspec.json.decode(data, type=answer)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise self._stranger(status, f"its answer has a form that no hub's has ({str(error)[:300]})") from None
        fault = self._fault(status, data)
        if isinstance(fault, RetryLater) and "retry_after" not in fault.data and _SECONDS.fullmatch(after):
            fault.data = {**fault.data, "retry_after": int(after)}
        raise fault

    def _note_time(self, date: str | None) -> None:
        if date is not None:
            with suppress(TypeError, ValueError, OverflowError, IndexError):
                self.clock_offset = parsedate_to_datetime(date).timestamp() - self._clock()

    def _fault(self, status: int, data: bytes) -> EntrepotError:
        """The error that the hub meant, or what to think of an answer that is not a hub's."""
        try:
            fault = msgspec.json.decode(data, type=FaultAnswer).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._stranger(status, f"it answered {status}, and not as a hub does")
        if fault.kind in {"bad-signature", "clock-skew"} and self.clock_offset is not None:
            try:
                now = self._clock()
                check_clock(now, now + self.clock_offset)
            except Denied as skew:
                return skew
        return from_wire(fault.kind, fault.message, fault.hint, fault.data)

    def _stranger(self, status: int, reason: str) -> RetryLater:
        return RetryLater(
            f"{self.url} is no entrepot hub just now: {reason}",
            kind="hub-unreachable",
            hint="Is this the hub's address? A proxy may have answered in its place.",
            hub=self.url,
            status=status,
        )

    def _translated(self, error: Exception) -> EntrepotError:
        """One of our errors for one of the HTTP library's."""
        if isinstance(error, _TooLong):
            return self._stranger(200, "its answer is too long")
        if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
            reason = str(getattr(error, "certificate_error", error))
            clock = "not yet valid" in reason or "expired" in reason
            return Denied(
                f"the certificate of {self.url} is not to be trusted: {reason[:300]}",
                hint="Is this machine's clock right?"
                if clock
                else "Is its authority private? Name its file (ca_file).",
                hub=self.url,
            )
        if isinstance(error, aiohttp.ClientHttpProxyError | aiohttp.ClientProxyConnectionError):
            reason, hint = "the proxy refuses or cannot be reached", "Check the proxy's address and password."
        elif isinstance(error, aiohttp.ClientConnectorDNSError):
            reason, hint = "no machine has this name", "Check the address and this machine's name service."
        elif isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
            reason, hint = "it does not speak TLS as expected", "Is the port right?"
        elif isinstance(error, aiohttp.ClientConnectionError | OSError):
            reason, hint = "no connection", "Is the hub running, and does this network let you reach it?"
        else:
            reason, hint = f"its answer cannot be read ({type(error).__name__})", "Is this the hub's address?"
        return RetryLater(
            f"the hub at {self.url} cannot be reached: {reason}", kind="hub-unreachable", hint=hint, hub=self.url
        )

    def _expect(self, hub: str) -> None:
        if hub != self.hub_public:
            raise Denied(
                f"another hub answers there: {self.url} is not the hub that this node was invited to",
                hint="Is the address right? If the hub was set up anew, ask for a new invite.",
                expected=self.hub_public,
                found=hub,
            )

    @property
    def clock_is_off(self) -> bool:
        """Whether the last answer showed this machine's clock to be too far from the hub's to sign for it."""
        return self.clock_offset is not None and abs(self.clock_offset) > WINDOW


def _member_path(channel: str, node: str) -> str:
    # A segment of dots alone would be resolved away before it is sent.
    name = quote(node, safe="").replace(".", "%2E")
    return f"/v1/channels/{quote(channel, safe='')}/members/{name}"


class _TooLong(ValueError):
    """An answer goes on beyond what any answer of a hub has."""


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > MAX_ANSWER:
            raise _TooLong
    return bytes(data)


def _tls(ca_file: str | None) -> ssl.SSLContext:
    """The system's trust and, if named, that of ``ca_file``. Reads files. Raises InvalidInput."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise InvalidInput(
                f"the certificates in {ca_file} cannot be used: {error.strerror or error}", kind="invalid-setting"
            ) from None
    return context
