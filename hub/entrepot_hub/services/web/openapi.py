"""The hub's HTTP API as one table, and the OpenAPI 3.1 document that is made of it: ``GET /v1/openapi.json``.

The forms of requests and answers are the structs that the handlers decode and encode; which kinds of error come with
which status follows from :mod:`entrepot.core.errors` and :func:`~entrepot_hub.services.web.errors.status_of`. A test
holds the table against the routes of a running hub, and another asks the hub everything that the document says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from aiohttp import web

from entrepot.core import api
from entrepot.core.errors import KINDS
from entrepot.core.signing import TAG, WINDOW
from entrepot_hub.services.web.errors import status_of
from entrepot_hub.services.web.health import Alive, Ready

type Schema = Mapping[str, Any]

PATH: Final = "/v1/openapi.json"
_JSON: Final = "application/json"
_BYTES: Final = "application/octet-stream"
_NAMED: Final = "#/components/schemas/{name}"

#: What every call under ``/v1`` may be answered with instead, and what one that is signed may.
_ANY: Final = (400, 413, 429, 500, 503)
_SIGNED: Final = (401, 403, 404, 409, 422)
_WAIT: Final = frozenset({429, 503})

_TEXT: Final[Schema] = {"type": "string"}
_WHOLE: Final[Schema] = {"type": "string", "pattern": "^(0|[1-9][0-9]{0,18})$"}
#: What stands in paths.
PLACES: Final[Mapping[str, Schema]] = {
    "channel": {"type": "string", "pattern": "^[a-z0-9]{1,32}$"},
    "stream": {"type": "string", "pattern": "^f[c-f][0-9a-f]{62}$"},
    "node": {"type": "string", "minLength": 1, "maxLength": 64},
    "token": {"type": "string", "pattern": "^[A-Za-z0-9_-]{91}$"},
    "name": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
    "key": {"type": "string", "minLength": 1, "maxLength": 1024},
}


#: What the fields of the forms are, by their name or, where it means something else there, by form and name.
FIELDS: Final[Mapping[str, str]] = {
    "active": "Whether the rights hold: neither the member is revoked nor the node suspended.",
    "at": "When the first of them happened, in unix seconds.",
    "binds": "What of a signed URL the bucket's provider holds uploads to, by name.",
    "bucket": "The bucket's URL, without secrets.",
    "budget": "Money per month, as a decimal number.",
    "bytes": "Bytes.",
    "channel": "The channel's name.",
    "ChannelDetail.channel": "The channel.",
    "channels": "The channels that the node is a member of.",
    "charged": "Bytes that objects and reservations use of the quota.",
    "checks": "Each thing that was looked at: ok, degraded, or the kind of an error.",
    "cost": "Money, as a decimal number, for the requests and bytes of the events.",
    "count": "How many events.",
    "created_at": "Unix seconds.",
    "currency": "Code of the currency, such as USD.",
    "data": "Plain values for programs; which ones depends on the kind.",
    "day_down": "Bytes that may be downloaded in a day (UTC); null for any number.",
    "day_up": "Bytes that may be uploaded in a day (UTC); null for any number.",
    "detail": "Why, as words by name.",
    "down": "Bytes downloaded today (UTC).",
    "error": "What is wrong.",
    "events": "What happened, the oldest first.",
    "expires": "Unix seconds.",
    "ReadTrial.expires": "Seconds for which the URL can be used.",
    "first": "Number of the first object; null where it is about none.",
    "granted_at": "When these rights were given, in unix seconds.",
    "headers": "Header lines that the request has to bear.",
    "held": "Bytes of charged that are held back after a rebuilding, for uploads of before.",
    "LimitView.held": "Objects of it in the bucket.",
    "held_until": "Until when bytes are held back, in unix seconds; null while none are.",
    "hint": "What a person can do about it.",
    "holders": "Nodes that said they hold the stream.",
    "hub": "The hub's public key as NKey text.",
    "id": "The invite's id, 32 hex digits.",
    "inbox": "Prefix of the node's inbox on the bus.",
    "info": "What the hub knows of the stream.",
    "instance": "The running hub process that answered, 16 hex digits.",
    "invite": "The invite's id: the first 16 bytes of its token, in hex.",
    "NewInvite.invite": "The invite.",
    "invites": "Its invites.",
    "jwt": "The login for the bus. A secret.",
    "jwt_expires": "Until when the login is good, in unix seconds.",
    "key": "What the bucket is opened with, without the secret; null where that needs no key.",
    "kind": "What it is, for programs: a word that is never renamed.",
    "label": "The part of the key that is no secret.",
    "last": "Number of the last object; null where it is about none.",
    "last_seen": "When the hub heard of it, in unix seconds.",
    "life": "Seconds for which the invite is good.",
    "limits": "Limits of the channel and of nodes, where the admin asks.",
    "lock": "Id of the channel's schema lock, 16 hex digits.",
    "ChannelInfo.lock": "The schema lock's canonical document.",
    "lock_id": "Id of the schema lock, 16 hex digits.",
    "mac": "HMAC-SHA-256 by which the node proves the invite, 64 hex digits.",
    "members": "Its members, past ones too.",
    "message": "A sentence for people.",
    "codec": "What miniblocks are stored as: none or zstd.",
    "miniblock": "Bytes of a miniblock.",
    "name": "The node's name.",
    "ChannelInfo.name": "The channel's name.",
    "ChannelView.name": "The channel's name.",
    "LimitView.name": "The node's name, or words for the channel and for each node.",
    "nats": "URLs of the bus's servers.",
    "node": "The node's public key at this hub, as NKey text.",
    "LimitView.node": "The node's public key; empty for the channel, * for each node.",
    "StreamEvent.node": "The name of the node that did it or for which it was done; null for the hub.",
    "object": "Bytes of an object; 0 where a stream is one object.",
    "objects": "Objects in the bucket now.",
    "LimitView.objects": "Objects in the bucket at most; null for any number.",
    "online": "Whether it is connected.",
    "opening": "The stream's opening, 80 hex digits; null while nobody said it.",
    "proof": "The hub's Ed25519 signature of challenge and address, 128 hex digits; empty without a challenge.",
    "public_read": "Whether anybody may read the bucket without a signature.",
    "quota": "Bytes in the bucket at most.",
    "ready": "Whether the hub can work.",
    "reason": "Why whoever waits for the stream waits; null if nobody does or nothing is in the way.",
    "retired_at": "When another key took its place, in unix seconds.",
    "revoked_at": "When it was taken back, in unix seconds; null while it was not.",
    "rights": "Words with commas between them; request and provide alone mean files.",
    "safe_at": "Until when a retired key has to stay valid at the provider, in unix seconds.",
    "seconds": "How long they took in all.",
    "set_at": "When the key was set, in unix seconds.",
    "set_by": "Who set the key: a node's public key, a word for the admin, or nothing if that is not known.",
    "status": "Always ok.",
    "stream": "Bytes of the largest stream that may be uploaded; null for any number.",
    "time": "The hub's clock, in unix seconds.",
    "transfer": "Names one get in everybody's logs, 16 hex digits.",
    "until": "When the last of them happened, in unix seconds.",
    "up": "Bytes uploaded today (UTC).",
    "url": "The whole invite URL. A secret, shown this once.",
    "ReadTrial.url": "The signed URL. A secret while it can be used.",
    "used": "How many nodes have joined by it.",
    "used_at": "When the key was last used, in unix seconds.",
    "uses": "How many nodes may join by it.",
    "version": "The hub program's version.",
    "wanted_by": "How many nodes wait for the stream.",
    "warnings": "What nodes will stumble over.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One thing that can be asked. ``answer``: a struct, or the media type of what is none. ``refusals``: statuses of
    errors. ``query``: fields by name, with whether each is needed. ``headers``: of the request, none needed."""

    method: str
    path: str
    summary: str
    answer: type[msgspec.Struct] | str
    refusals: tuple[int, ...]
    request: type[msgspec.Struct] | None = None
    signed: bool = False
    query: Mapping[str, tuple[Schema, bool]] = field(default_factory=dict)
    headers: Mapping[str, Schema] = field(default_factory=dict)
    statuses: tuple[int, ...] = (200,)

    @property
    def name(self) -> str:
        """What generated clients may call it."""
        words = self.path.replace("{", "").replace("}", "").strip("/").replace("/", "_").replace(".", "_")
        return f"{self.method.lower()}_{words}"


def _signed(method: str, path: str, summary: str, answer: type[msgspec.Struct], **more: Any) -> Call:
    return Call(method=method, path=path, summary=summary, answer=answer, signed=True, refusals=_ANY + _SIGNED, **more)


_URL_QUERY: Final[Mapping[str, tuple[Schema, bool]]] = {
    "method": ({"type": "string", "enum": ["GET", "PUT"]}, True),
    "expires": (_WHOLE, True),
    "sig": (_TEXT, True),
}
_CHALLENGE: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}

#: Everything that the hub answers to nodes.
CALLS: Final[tuple[Call, ...]] = (
    Call(
        method="GET",
        path="/v1/hub",
        summary="Which hub this is; challenged at one of its addresses, the proof of it.",
        answer=api.HubInfo,
        refusals=_ANY,
        query={"challenge": (_CHALLENGE, False), "address": (_TEXT, False)},
    ),
    Call(method="GET", path=PATH, summary="This document.", answer=_JSON, refusals=_ANY),
    Call(
        method="POST",
        path="/v1/join",
        summary="Take up an invite. The same key may repeat it.",
        answer=api.Joined,
        refusals=(*_ANY, 403, 404, 409),
        request=api.JoinRequest,
    ),
    _signed("POST", "/v1/session", "All that a node needs to work.", api.SessionInfo, request=api.SessionRequest),
    _signed("GET", "/v1/channels/{channel}", "One's own channel, its members and invites.", api.ChannelDetail),
    _signed(
        "POST",
        "/v1/channels/{channel}/invites",
        "A new invite; its URL is in the answer, this once.",
        api.NewInvite,
        request=api.InviteRequest,
    ),
    _signed(
        "PUT",
        "/v1/channels/{channel}/members/{node}",
        "Exactly these rights for a member, named by key or name.",
        api.MemberView,
        request=api.GrantRequest,
    ),
    _signed("DELETE", "/v1/channels/{channel}/members/{node}", "No rights any more for a member.", api.MemberView),
    _signed("GET", "/v1/channels/{channel}/streams/{stream}", "What the hub knows of a stream.", api.StreamInfo),
    _signed(
        "GET",
        "/v1/channels/{channel}/streams/{stream}/timeline",
        "What happened to a stream, and why whoever waits for it waits.",
        api.Timeline,
    ),
    _signed("GET", "/v1/channels/{channel}/trial", "A signed GET by which a node tries the bucket.", api.ReadTrial),
    Call(
        method="GET",
        path="/j/{token}",
        summary="What an invite is, for people. It is not looked up.",
        answer="text/plain",
        refusals=(400, 403, 429, 500, 503),
    ),
    Call(method="GET", path="/healthz", summary="The process answers.", answer=Alive, refusals=(500, 503)),
    Call(
        method="GET",
        path="/readyz",
        summary="What the hub needs answers too.",
        answer=Ready,
        refusals=(500,),
        statuses=(200, 503),
    ),
    Call(
        method="PUT",
        path="/bucket/{name}/{key}",
        summary="Put an object of a folder bucket by a URL that the hub signed.",
        answer="",
        refusals=(400, 403, 404, 408, 411, 412, 417, 429, 500, 503, 507),
        query={**_URL_QUERY, "length": (_WHOLE, True), "digest": (_TEXT, True)},
    ),
    Call(
        method="GET",
        path="/bucket/{name}/{key}",
        summary="Get an object of a folder bucket, or one range of it, by a URL that the hub signed.",
        answer=_BYTES,
        refusals=(400, 403, 404, 412, 416, 422, 429, 500, 503),
        query={**_URL_QUERY, "etag": (_TEXT, False)},
        headers={"Range": _TEXT, "If-Match": _TEXT, "If-Range": _TEXT},
        statuses=(200, 206),
    ),
)


class OpenApiRoutes:
    """Serves the document of these calls. ``urls``: the hub's addresses; ``version``: its program's."""

    def __init__(self, urls: Sequence[str], version: str, calls: Iterable[Call] = CALLS) -> None:
        self._body = msgspec.json.encode(document(calls, urls, version))

    def routes(self) -> list[web.RouteDef]:
        """The routes, for ``app.router.add_routes``."""
        return [web.get(PATH, self.show)]

    async def show(self, _request: web.Request) -> web.Response:
        """The document."""
        return web.Response(body=self._body, content_type=_JSON)


def document(calls: Iterable[Call], urls: Sequence[str], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these calls."""
    listed = tuple(calls)
    forms: set[type[msgspec.Struct]] = {api.FaultAnswer}
    for call in listed:
        forms.update(form for form in (call.answer, call.request) if isinstance(form, type))
    _, schemas = msgspec.json.schema_components(sorted(forms, key=str), ref_template=_NAMED)
    for name, schema in schemas.items():
        _describe(name, schema)
    paths: dict[str, dict[str, Any]] = {}
    for call in listed:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "entrepot hub",
            "version": version,
            "summary": "What nodes and the owners of channels ask a hub.",
            "description": (
                f"Bodies are JSON of at most {api.MAX_REQUEST} bytes; a field that is not known is refused. Answers "
                "may gain fields. Every path that takes GET takes HEAD. Objects move by URLs that the hub signed; of "
                "the buckets only folders are served here."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": url} for url in urls],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {str(status): _refusal(status) for status in sorted({s for c in listed for s in c.refusals})},
            "securitySchemes": {
                "signature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Signature",
                    "description": (
                        "RFC 9421, Ed25519 by the node's key at this hub, over @method and @target-uri (by an address "
                        f"of the hub) and, with a body, content-digest (RFC 9530, SHA-256) and content-type; tag {TAG}."
                    ),
                },
                "signature-input": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Signature-Input",
                    "description": (
                        f"Its created (at most {WINDOW} seconds from the hub's clock), nonce (never one twice), keyid "
                        "(the public key as NKey text), alg and tag."
                    ),
                },
            },
        },
    }


def kinds_of(status: int) -> tuple[str, ...]:
    """The kinds of error that come with a status."""
    return tuple(kind for kind, form in KINDS.items() if status_of(form("", kind=kind)) == status)


def _describe(name: str, schema: dict[str, Any]) -> None:
    """Say on one line, without the marks of this program's language, what the form and each of its fields is."""
    schema["description"] = " ".join(schema["description"].replace("``", "`").split())
    for field_name, form in schema.get("properties", {}).items():
        form["description"] = FIELDS[f"{name}.{field_name}" if f"{name}.{field_name}" in FIELDS else field_name]


def _operation(call: Call) -> dict[str, Any]:
    places = [part.strip("{}") for part in call.path.split("/") if part.startswith("{")]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": PLACES[name]} for name in places
    ]
    parameters += [
        {"name": name, "in": "query", "required": needed, "schema": schema}
        for name, (schema, needed) in call.query.items()
    ]
    parameters += [
        {"name": name, "in": "header", "required": False, "schema": schema} for name, schema in call.headers.items()
    ]
    answers: dict[str, Any] = {str(status): _answer(call) for status in call.statuses}
    answers |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in call.refusals}
    operation: dict[str, Any] = {
        "operationId": call.name,
        "summary": call.summary,
        "parameters": parameters,
        "responses": answers,
        "security": [{"signature": [], "signature-input": []}] if call.signed else [],
    }
    if call.request is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": _form(call.request)}}}
    elif call.method == "PUT":
        operation["requestBody"] = {"required": True, "content": {_BYTES: {}}}
    return operation


def _answer(call: Call) -> dict[str, Any]:
    described: dict[str, Any] = {"description": call.summary}
    if isinstance(call.answer, type):
        described["content"] = {_JSON: {"schema": _form(call.answer)}}
    elif call.answer:
        described["content"] = {call.answer: {"schema": {"type": "object"}} if call.answer == _JSON else {}}
    return described


def _refusal(status: int) -> dict[str, Any]:
    kinds = kinds_of(status)
    described: dict[str, Any] = {
        "description": f"Kinds: {', '.join(kinds)}." if kinds else "The kind tells why.",
        "content": {_JSON: {"schema": _form(api.FaultAnswer)}},
    }
    if status == 400:  # what is no HTTP, or a longer line of it than is read, never gets as far as our answers
        described["content"]["text/plain"] = {"schema": _TEXT}
    if status in _WAIT:
        seconds = {"type": "integer", "minimum": 1}
        described["headers"] = {"Retry-After": {"description": "Seconds.", "required": True, "schema": seconds}}
    return described


def _form(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _NAMED.format(name=kind.__name__)}
