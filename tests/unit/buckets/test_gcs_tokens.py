"""Google's tokens are renewed early, and once for all threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.exceptions import GoogleAuthError
from tests.servers.gcs import GcsServer, run_gcs, run_proxy
from tests.servers.gcs_proxy import EMAIL, Control, make_document

from entrepot.core.errors import Denied
from entrepot_hub.adapters.buckets.credentials import GcsServiceAccount
from entrepot_hub.adapters.buckets.gcs import GcsBucket
from entrepot_hub.adapters.buckets.gcs_settings import GcsSettings
from entrepot_hub.adapters.buckets.gcs_tokens import EARLY, SharedToken, make_token


class Clock:
    """Unix seconds that tests move."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Endpoint:
    """A token endpoint, and the token of an account there by a clock of the test's."""

    def __init__(self, control: Control, token: SharedToken, clock: Clock) -> None:
        self.control, self.token, self.clock = control, token, clock

    def use(self) -> str:
        """Make ready a request, as the client does; gives the token in it."""
        headers: dict[str, str] = {}
        self.token.before_request(None, "GET", "http://x", headers)
        return headers["authorization"]

    def use_at_once(self, times: int = 16) -> set[str]:
        """The tokens in so many requests that are made ready at the same time."""
        with ThreadPoolExecutor(times) as pool:
            return set(pool.map(lambda _: self.use(), range(times)))


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    """The service account's key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def endpoint(key: rsa.RSAPrivateKey) -> Iterator[Endpoint]:
    """A token endpoint that takes its time, so that those who ask at once meet."""
    control, clock = Control(token_delay=0.2), Clock()
    with run_proxy("http://127.0.0.1:1", key, control) as url, requests.Session() as session:
        account = GcsServiceAccount(document=make_document(key, url), client_email=EMAIL)
        token, project, remote = make_token(
            GcsSettings(bucket="any", credentials=account, endpoint=url), session, clock
        )
        assert (project, remote) == ("entrepot-tests", False)
        yield Endpoint(control, token, clock)


def test_the_first_token_is_asked_for_once(endpoint: Endpoint) -> None:
    """Sixteen requests at once wait for one token and all get it."""
    assert len(endpoint.use_at_once()) == 1
    assert endpoint.control.tokens_given == 1


def test_a_token_is_renewed_five_minutes_early(endpoint: Endpoint) -> None:
    """It is kept until five minutes before its end, and then renewed once for all."""
    first = endpoint.use()
    endpoint.clock.ahead = 3600 - EARLY - 30
    assert endpoint.use_at_once() == {first}
    endpoint.clock.ahead = 3600 - EARLY + 5
    endpoint.use_at_once()
    assert endpoint.control.tokens_given == 2
    assert endpoint.use() != first


def test_nobody_waits_for_an_early_renewal(endpoint: Endpoint) -> None:
    """While one thread renews a token that still holds, the others go on with it."""
    first = endpoint.use()
    endpoint.clock.ahead = 3600 - EARLY + 5
    assert first in endpoint.use_at_once()
    assert endpoint.control.tokens_given == 2


def test_an_early_renewal_may_fail(endpoint: Endpoint) -> None:
    """While the token holds, a failing renewal disturbs nobody and is not tried in every request; when the token is no
    longer usable it is an error."""
    first = endpoint.use()
    endpoint.control.token_error = (400, "invalid_grant")
    endpoint.clock.ahead = 3600 - EARLY + 5
    assert {endpoint.use() for _ in range(5)} == {first}
    endpoint.clock.ahead = 3600
    with pytest.raises(GoogleAuthError):
        endpoint.use()
    endpoint.control.token_error = None
    assert endpoint.use() != first


def test_a_refused_token_is_renewed_once_for_all(endpoint: Endpoint) -> None:
    """When a server refuses the token to many at once, one new one serves them all."""
    first = endpoint.use()
    endpoint.clock.ahead = 60
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: endpoint.token.refresh(None), range(8)))
    assert endpoint.control.tokens_given == 2
    assert endpoint.use() != first


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """The fake server behind the proxy."""
    with run_gcs(tmp_path_factory.mktemp("gcs")) as running:
        yield running


async def test_a_bucket_under_load_asks_for_one_token(server: GcsServer) -> None:
    """Forty calls at once take one token; one that was withdrawn is replaced and nobody notices."""
    settings = GcsSettings(bucket="load", endpoint=server.endpoint, credentials=server.credentials, create=True)
    before = server.control.tokens_given
    clock = Clock()
    async with GcsBucket(settings, name="load", clock=clock) as bucket:
        await asyncio.gather(*(bucket.head(f"k/{number}") for number in range(40)))
        assert server.control.tokens_given == before + 1
        server.control.valid_tokens.clear()
        clock.ahead = 60
        await asyncio.gather(*(bucket.head(f"k/{number}") for number in range(40)))
        assert server.control.tokens_given == before + 2


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("invalid_grant", "denied"),
        ("Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe", "clock-skew"),
    ],
)
async def test_why_there_is_no_token_is_told(server: GcsServer, told: str, kind: str) -> None:
    """A key that was withdrawn is a denial, a clock that is wrong is told as such."""
    settings = GcsSettings(bucket="load", endpoint=server.endpoint, credentials=server.credentials)
    server.control.token_error = (400, told)
    bucket = GcsBucket(settings, name="denied")
    try:
        with pytest.raises(Denied) as caught:
            await bucket.head("k")
    finally:
        server.control.token_error = None
        await bucket.aclose()
    assert caught.value.kind == kind
