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
