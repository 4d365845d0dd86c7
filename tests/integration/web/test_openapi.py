"""The OpenAPI document tells of every route and no other, and a running hub does what it says, whatever is asked."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import pytest
import requests
import requests.auth
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.auths import RequestsAuth
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.result import Ok
from tests.integration.web.conftest import MakeHub, Served

from entrepot.core import api
from entrepot.core.errors import KINDS, InvalidInput
from entrepot.core.identifiers import Opening
from entrepot.core.nkeys import SigningKey
from entrepot.core.rights import SHORT_RIGHTS
from entrepot.core.signing import sign_request
from entrepot_hub.adapters.buckets.folder import FolderBucket
from entrepot_hub.adapters.buckets.folder_web import FolderWeb
from entrepot_hub.core.members import Right, Rights
from entrepot_hub.services.settings import LimitSettings
from entrepot_hub.services.web.errors import status_of
from entrepot_hub.services.web.openapi import CALLS, FIELDS, PATH, PLACES, Call, document, kinds_of

#: Whoever asks at random asks more often than a node may.
WIDE = LimitSettings(node_rate=10_000, node_burst=100_000, address_rate=10_000, address_burst=100_000)
EXAMPLES = 6
OPENING = Opening(5, bytes(range(32)))


def of_code() -> dict[str, Any]:
    """The document as it is made."""
    return document(CALLS, ["https://hub.example.org"], "1")


async def test_the_document_has_every_route_and_no_other(make_hub: MakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hub routes, bulk bytes included, is what the document lists; HEAD goes with GET."""
    apps: list[web.Application] = []
    begin = web.AppRunner.__init__

    def noting(runner: web.AppRunner, app: web.Application, **more: Any) -> None:
        apps.append(app)
        begin(runner, app, **more)

    monkeypatch.setattr(web.AppRunner, "__init__", noting)
    await make_hub(more=FolderWeb(lambda _: None).routes())
    routed = [
        {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
        for app in apps
    ]
    nodes = next(routes for routes in routed if ("GET", "/v1/hub") in routes)
    told = {(method.upper(), path) for path, calls in of_code()["paths"].items() for method in calls}
    assert {route for route in nodes if route[0] != "HEAD"} == told


async def test_the_document_is_served(make_hub: MakeHub, http: aiohttp.ClientSession) -> None:
    """Anybody may read it, and it names the hub's own addresses."""
    hub = await make_hub()
    async with http.get(hub.url + PATH) as response:
        assert response.status == 200
        told = await response.json()
    assert told["openapi"] == "3.1.0"
    assert [server["url"] for server in told["servers"]] == list(hub.settings.urls)
    assert told["paths"] == of_code()["paths"]


def test_every_reference_leads_somewhere() -> None:
    """No form or answer is named that the document lacks, and the forms are schemas."""
    told = of_code()
    text = json.dumps(told)
    for piece in text.split('"$ref": "#/components/')[1:]:
        group, _, name = piece.partition('"')[0].partition("/")
        assert name in told["components"][group]
    for form in told["components"]["schemas"].values():
        jsonschema_rs.validator_for({**form, "components": told["components"]})


def test_every_kind_of_error_stands_at_its_status() -> None:
    """The kinds listed with the statuses are all kinds there are, each once."""
    statuses = {status_of(form("", kind=kind)) for kind, form in KINDS.items()}
    listed = [kind for status in statuses for kind in kinds_of(status)]
    assert sorted(listed) == sorted(KINDS)
    told = of_code()["components"]["responses"]
    assert {str(status) for status in statuses} <= set(told)
    assert "too-many-requests" in told["429"]["description"]


@pytest.mark.parametrize("call", [call for call in CALLS if call.path.startswith("/v1/")], ids=lambda call: call.name)
def test_every_call_may_be_told_to_wait(call: Call) -> None:
    """429 and 503 are documented for all of ``/v1``, with when to come back."""
    told = of_code()
    answers = told["paths"][call.path][call.method.lower()]["responses"]
    for status in ("429", "503"):
        assert answers[status] == {"$ref": f"#/components/responses/{status}"}
        assert told["components"]["responses"][status]["headers"]["Retry-After"]["required"]


def test_everything_is_described_for_people() -> None:
    """Every form and every field has a sentence on one line, without markup of Python; none is told that is not
    there."""
    used = set()
    for name, form in of_code()["components"]["schemas"].items():
        for told in (form, *form.get("properties", {}).values()):
            assert told["description"].endswith((".", "?")), (name, told)
            assert not set("\n") & set(told["description"])
            assert "``" not in told["description"]
            assert ":func:" not in told["description"]
            assert "  " not in told["description"]
        for field in form.get("properties", {}):
            used.add(f"{name}.{field}" if f"{name}.{field}" in FIELDS else field)
    assert used == set(FIELDS)


@pytest.mark.parametrize(
    ("rights", "good"),
    [
        *((word, True) for word in (*SHORT_RIGHTS, *Right)),
        ("request, provide,owner", True),
        ("", False),
        ("request,", False),
        ("owner:files", False),
        ("Request", False),
        ("root", False),
    ],
)
def test_rights_in_the_document_are_those_of_the_hub(rights: str, good: bool) -> None:
    """A client that goes by the document asks for no rights that the hub does not know, and may ask for all it does."""
    form = of_code()["components"]["schemas"]["GrantRequest"]
    assert jsonschema_rs.is_valid(form, {"rights": rights}) is good
    with contextlib.nullcontext() if good else pytest.raises(InvalidInput):
        Rights.parse(rights)


async def test_uses_in_the_document_are_those_of_the_hub(make_hub: MakeHub) -> None:
    """The document bounds the uses of an invite where the hub does."""
    form = of_code()["components"]["schemas"]["InviteRequest"]
    hub = await make_hub()
    await hub.channel()
    for uses, good in ((0, False), (1, True), (100_000, True), (100_001, False)):
        assert jsonschema_rs.is_valid(form, {"uses": uses}) is good
        with contextlib.nullcontext() if good else pytest.raises(InvalidInput):
            await hub.invite(uses=uses)


def test_bodies_are_those_that_handlers_decode() -> None:
    """Each struct of the API's requests is the body of one call."""
    bodies = {call.request for call in CALLS if call.request is not None}
    assert bodies == set(api.Body.__subclasses__())


class Signing(requests.auth.AuthBase):
    """Signs a request as a node does, whatever is in it."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        given = request.body or b""
        assert isinstance(given, str | bytes)
        body = given.encode() if isinstance(given, str) else given
        if body:
            request.headers.setdefault("Content-Type", "application/json")
        kind = {name: value for name, value in request.headers.items() if name.lower() == "content-type"}
        fields = {name: value.decode() if isinstance(value, bytes) else value for name, value in kind.items()}
        method, url, nonce = str(request.method), str(request.url), secrets.token_hex(12)
        sign_request(method, url, fields, body, key=self._key, nonce=nonce, now=time.time())
        request.headers.update(fields)
        return request


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_hub_does_what_its_document_says(
    make_hub: MakeHub, tmp_path: Path, report: Callable[..., None]
) -> None:
    """Asked at random, by an owner's good signature, within the document and beside it: no answer with 5xx, none of a
    form or status that is not documented, nothing let in without a signature."""
    store = tmp_path / "store"
    store.mkdir()
    folder = FolderBucket(store, name="0" * 16, secret=bytes(16), public_url="http://127.0.0.1", clock=time.time)
    async with folder:
        hub = await make_hub(more=FolderWeb(lambda _: folder).routes(), limits=WIDE)
        await hub.channel()
        owner = await hub.member(rights="owner,request,provide")
        member = await hub.member(name="lab2")
        held = [(OPENING.stream_id().raw, OPENING)]
        await hub.database.call(hub.ledger.hold, "demo", held, member.public, hub.clock())
        count = await asyncio.to_thread(ask_everything, hub, owner)
    with warnings.catch_warnings():
        # Connections that the asking library left to the collector would be told as those of a later test.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert count > len(CALLS)
    report("fuzz", decoder="HTTP API (schemathesis)", inputs=count, outcome="as documented, no 5xx")


def fits(name: str, value: object) -> bool:
    """Whether this may stand in a path under this name."""
    return isinstance(value, str) and jsonschema_rs.is_valid(dict(PLACES[name]), value)


def ask_everything(hub: Served, owner: SigningKey) -> int:
    """How many requests were made. Raises what schemathesis raises."""
    schema = schemathesis.openapi.from_url(hub.url + PATH)
    asked: Counter[tuple[object, str]] = Counter()
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    now: list[Any] = [modes[0]]
    signs: RequestsAuth[Any] = RequestsAuth(Signing(owner))

    @schema.auth(refresh_interval=None)
    class _Signs:
        """Signs, but where it is the signature that is to be wrong."""

        def get(self, case: schemathesis.Case, context: schemathesis.AuthContext) -> Any:
            return signs.get(case, context)

        def set(self, case: schemathesis.Case, data: Any, context: schemathesis.AuthContext) -> None:
            if case.meta is None or not case.meta.is_negative_at(ParameterLocation.HEADER):
                signs.set(case, data, context)

    @schema.hook
    def map_path_parameters(_context: Any, places: dict[str, Any] | None) -> dict[str, Any] | None:
        # Most names at random are of nothing: every other one becomes that of something.
        known = {"channel": "demo", "node": "lab2", "stream": OPENING.stream_id().hex, "name": "0" * 16}
        if not places:
            return places
        return {
            name: known[name] if name in known and fits(name, value) and sum(map(ord, value)) % 2 else value
            for name, value in places.items()
        }

    @schema.hook
    def map_body(_context: Any, body: Any) -> Any:
        if (
            isinstance(body, dict)
            and now[0] is modes[0]
            and isinstance(body.get("rights"), str)
            and len(body["rights"]) % 2
        ):
            return {**body, "rights": "request,provide"}
        return body

    # msgspec takes 1.0 for no integer, JSON Schema does.
    excluded: list[Any] = [schemathesis.checks.CHECKS.get_one("positive_data_acceptance")]

    def ask(operation: Any, mode: Any) -> None:
        @settings(
            max_examples=EXAMPLES * max(settings().max_examples // 50, 1),
            deadline=None,
            database=None,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def search(case: schemathesis.Case) -> None:
            asked[mode, operation.label] += 1
            case.call_and_validate(base_url=hub.url, excluded_checks=excluded, timeout=30)

        search()

    operations: list[Any] = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    # All but the document itself.
    assert {call.path for call in CALLS} - {operation.path for operation in operations} <= {PATH}
    for operation, mode in itertools.product(operations, modes):
        now[0] = mode
        with contextlib.suppress(Unsatisfiable) if mode is modes[1] else contextlib.nullcontext():
            ask(operation, mode)
    # Where there is little to get wrong, schemathesis finds no way to.
    assert {label for mode, label in asked if mode is modes[1]} >= {f"{c.method} {c.path}" for c in CALLS if c.request}
    return asked.total()
