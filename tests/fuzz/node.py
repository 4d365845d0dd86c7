"""Decoders of what a node reads from hubs and buckets, and from its own folder and socket."""

from __future__ import annotations

import http.client
import io
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

import msgspec
from tests.fuzz.core import HUB, KEY, NOW, STREAM, URL, invite_samples
from tests.fuzz.targets import Target, check_tellable, chosen, each, finished, text_of

from entrepot.adapters.hub_client import HubClient
from entrepot.adapters.transfer import answers
from entrepot.adapters.transfer.requests import CancelToken
from entrepot.core import (
    api,
    invite,
)
from entrepot.core.errors import EntrepotError, from_wire
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.lock import SchemaLock
from entrepot.services import daemon
from entrepot.services.control import AddedRequest
from entrepot.services.hubs import Hubs
from entrepot.services.keychain import Keychain
from entrepot.services.observation import MetricsAddress

# --- what a hub answers -------------------------------------------------------------------------------------------


class _Content:
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def iter_any(self) -> Any:
        yield self._data


class _Response:
    def __init__(self, status: int, date: str, data: bytes) -> None:
        self.status, self.headers, self.content = status, {"Date": date}, _Content(data)

    async def __aenter__(self) -> _Response:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class _Http:
    """What the client speaks HTTP with, but for the network."""

    closed = False

    def __init__(self, answer: _Response) -> None:
        self._answer = answer

    def request(self, *_: object, **__: object) -> _Response:
        return self._answer


CALLS: dict[str, Callable[[HubClient], Any]] = {
    "session": lambda client: client.session(),
    "hub": lambda client: client.hub(),
    "stream": lambda client: client.stream_info("demo", StreamId.parse(STREAM)),
    "channel": lambda client: client.channel("demo"),
    "invite": lambda client: client.create_invite("demo"),
    "grant": lambda client: client.grant("demo", "lab", "request"),
    "join": lambda client: client.join(invite.Invite.parse(text_of(invite_samples()[0][1:])), "lab"),
}


def run_hub_answer(data: bytes) -> object:
    """Whatever answers in a hub's place: the answer asked for, or what the hub meant, or that it is none.

    The first line is the status and the Date header.
    """
    call, rest = chosen(data, list(CALLS.values()))
    head, _, body = rest.partition(b"\n")
    status, _, date = head.partition(b" ")
    client = HubClient(URL, KEY, HUB, clock=lambda: NOW)
    answer = _Response(int(status) if status.isdigit() and len(status) == 3 else 200, text_of(date), body)
    client._http = cast("Any", _Http(answer))
    found = finished(call(client))
    if isinstance(found, api.StreamInfo) and found.opening is not None:
        Opening.decode(bytes.fromhex(found.opening))
    return found


def hub_answer_samples() -> list[bytes]:
    """Good answers to each call, and an error."""
    date = b"200 Sat, 21 Nov 2026 12:00:00 GMT\n"
    channel = api.ChannelInfo(
        name="demo",
        lock=SchemaLock("demo").canonical().decode(),
        lock_id=SchemaLock("demo").hex,
        rights="request",
        quota=1 << 30,
        public_read=False,
    )
    session = api.SessionInfo(
        hub=HUB,
        node=KEY.public,
        name="lab",
        jwt="e30.e30.e30",
        jwt_expires=NOW,
        nats=("nats://127.0.0.1:4222",),
        inbox=f"_INBOX.{KEY.public}",
        instance="0011223344556677",
        channels=(channel,),
        time=NOW,
    )
    view = api.ChannelView(
        name="demo",
        bucket="file:///b",
        quota=1,
        charged=0,
        lock="00" * 8,
        miniblock=1,
        object=4,
        public_read=False,
        created_at=NOW,
        binds={"length": True},
    )
    member = api.MemberView(
        channel="demo", node=KEY.public, name="lab", rights="request", active=True, granted_at=NOW, revoked_at=None
    )
    made = api.InviteView(id="0" * 32, channel="demo", rights="request", uses=1, used=0, expires=NOW, revoked_at=None)
    answers: list[object] = [
        session,
        api.HubInfo(hub=HUB, version="1", time=NOW),
        api.StreamInfo(
            opening="00" * 40,
            holders=(api.HolderInfo(name="lab", online=True, last_seen=NOW),),
            objects=1,
            bytes=4,
            wanted_by=0,
        ),
        api.ChannelDetail(channel=view, members=[member], invites=[made]),
        api.NewInvite(invite=made, url=f"{URL}/j/x"),
        member,
    ]
    fault = {"error": {"kind": "no-right", "message": "no", "hint": None, "data": {"channel": "demo"}}}
    good = each(range(7), [date + msgspec.json.encode(answer) for answer in answers])
    return [*good, b"\x00403 \n" + msgspec.json.encode(fault), b"\x00401 \n" + msgspec.json.encode(fault)]


def run_fault(data: bytes) -> object:
    """An error that a hub or peer told: one of ours, which tells the same."""
    kind, message, hint, fields = msgspec.json.decode(
        data, type=tuple[str, str, str | None, dict[str, Any]], strict=False
    )
    error = from_wire(kind, message, hint, fields)
    assert isinstance(error, EntrepotError)
    return error


def fault_or_nothing(data: bytes) -> object:
    """The same for bytes that may be no JSON at all."""
    try:
        return run_fault(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


# --- what a bucket answers ----------------------------------------------------------------------------------------


class _Socket:
    """A socket from which these bytes come."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._data)


def run_bucket_answer(data: bytes) -> object:
    """Any bytes in the place of an HTTP answer: a refusal in our words, or parts that are what they say."""
    try:
        with answers.network_errors("bucket.example.org", CancelToken()):
            response = http.client.HTTPResponse(cast("Any", _Socket(data)), method="GET")
            response.begin()
            length, span = answers.content_length(response), answers.content_range(response)
            assert length is None or length >= 0
            assert span is None or min(span[:2]) >= 0
            body = answers.error_body(response)
            assert len(body) <= answers.ERROR_BODY
            code = answers.error_code(body)
            assert code is None or len(code) <= 64
            after = answers.retry_after(response)
            assert after is None or after >= 0
            raise answers.refusal("bucket.example.org", response, body)
    except answers.Setback as setback:
        check_tellable(setback.error)
        return setback


def bucket_answer_samples() -> list[bytes]:
    """Answers of several kinds."""
    error = b"<Error><Code>SlowDown</Code></Error>"
    return [
        b'HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/100\r\nContent-Length: 3\r\nETag: "e"\r\n\r\n012',
        b"HTTP/1.1 503 Slow Down\r\nRetry-After: 3\r\nContent-Length: 36\r\n\r\n" + error,
        b"HTTP/1.1 503 X\r\nRetry-After: Sat, 21 Nov 2026 12:00:00 GMT\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.0 403 Forbidden\r\n\r\n<Error><Code>AccessDenied</Code></Error>",
    ]


# --- the node's own folder and socket -----------------------------------------------------------------------------


@cache
def folder() -> Path:
    """A folder of this process's own."""
    return Path(tempfile.mkdtemp(prefix=f"entrepot-fuzz-{os.getpid()}-"))


def run_hubs_file(data: bytes) -> object:
    """``hubs.json``, whatever became of it."""
    path = folder() / "hubs.json"
    path.write_bytes(data)
    return Hubs(path)._read()


def hubs_file_samples() -> list[bytes]:
    """A node of one hub."""
    lock_text = SchemaLock("demo").canonical().decode()
    channel = {"name": "demo", "lock": lock_text, "rights": "request", "quota": 1, "public_read": False}
    hub = {"url": URL, "hub": HUB, "node": KEY.public, "name": "lab", "channels": [channel]}
    return [json.dumps({"version": 1, "hubs": [hub]}).encode(), b'{"version": 2}']


def run_seed_file(data: bytes) -> object:
    """The file of a node's seed."""
    path = folder() / "seed"
    path.write_bytes(data)
    return Keychain(path)._load()


def run_metrics_address(data: bytes) -> object:
    """Where the daemon's metrics are served."""
    way, rest = chosen(data, (False, True))
    return MetricsAddress.parse(text_of(rest), anywhere=way)


class _Asked:
    """A request to the daemon, as far as it is read."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        return self._data


def run_daemon_request(data: bytes) -> object:
    """What a command says to the daemon."""
    found: AddedRequest = finished(daemon._body(cast("Any", _Asked(data)), AddedRequest))
    return [StreamId.parse(stream) for stream in found.streams]


TARGETS: tuple[Target, ...] = (
    Target(
        name="hub's answer",
        run=run_hub_answer,
        samples=hub_answer_samples,
        covers=("entrepot.core.errors:from_wire",),
        main=True,
    ),
    Target(
        name="told error",
        run=fault_or_nothing,
        samples=lambda: [b'["no-right","no","hint",{"a":1}]', b'["new-kind","x",null,{"self":2,"b c":3}]'],
        covers=("entrepot.core.errors:from_wire",),
    ),
    Target(name="bucket's answer", run=run_bucket_answer, samples=bucket_answer_samples, covers=(), main=True),
    Target(
        name="hubs.json",
        run=run_hubs_file,
        samples=hubs_file_samples,
        covers=("entrepot.adapters.documents:read_document",),
    ),
    Target(
        name="seed file",
        run=run_seed_file,
        samples=lambda: [b"ab" * 32 + b"\n"],
        covers=("entrepot.adapters.documents:read_document",),
    ),
    Target(
        name="metrics address",
        run=run_metrics_address,
        samples=lambda: each(range(2), [b"127.0.0.1:9465", b"[::]:1"]),
        covers=("entrepot.services.observation:MetricsAddress.parse",),
    ),
    Target(
        name="command to the daemon",
        run=run_daemon_request,
        samples=lambda: [b'{"streams":["%s"]}' % STREAM.encode()],
        covers=(),
    ),
)
