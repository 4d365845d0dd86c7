"""A bucket's keys: the documents in which people have them, the form in which the hub seals them."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import Corrupt, InvalidInput
from entrepot_hub.adapters.buckets.credentials import (
    AzureClient,
    AzureKey,
    Credentials,
    GcsAmbient,
    GcsServiceAccount,
    S3Ambient,
    S3Credentials,
)
from entrepot_hub.adapters.buckets.keys import MAX_KEYS, decode_keys, encode_keys, parse_keys
from entrepot_hub.adapters.buckets.location import parse_location

SECRET = "wJalrXUtnFEMI-very-secret"
S3 = parse_location("s3://lab?region=x")
GCS = parse_location("gs://lab")
AZURE = parse_location("azblob://lab?account=acct1")
AZURITE = parse_location("azblob://lab?account=acct1&endpoint=http://127.0.0.1:10000/acct1")
PAIR = S3Credentials(access_key="AKIA", secret_key=SECRET)
TEMPORARY = S3Credentials(access_key="AKIA", secret_key=SECRET, session_token="token", expires=1_795_262_400.0)
ACCOUNT = {
    "type": "service_account",
    "project_id": "p",
    "private_key": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n",
    "client_email": "hub@p.iam.gserviceaccount.com",
    "token_uri": "https://oauth2.googleapis.com/token",
}
CONNECTION = "DefaultEndpointsProtocol=https;AccountName=acct1;AccountKey=c2VjcmV0;EndpointSuffix=core.windows.net"
CLIENT = AzureClient(account="acct1", tenant="t.example", client="id", secret=SECRET)


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        (f'{{"access_key": "AKIA", "secret_key": "{SECRET}"}}', PAIR),
        (f'access_key = "AKIA"\nsecret_key = "{SECRET}"\n', PAIR),
        (f"[default]\naws_access_key_id = AKIA\naws_secret_access_key = {SECRET}\nregion = eu-west-1\n", PAIR),
        (f"[lab]\naws_access_key_id=AKIA\naws_secret_access_key={SECRET}\n", PAIR),
        (
            f"[default]\naws_access_key_id = AKIA\naws_secret_access_key = {SECRET}\n"
            "[other]\naws_access_key_id = B\naws_secret_access_key = c%\n",
            PAIR,
        ),
        (f'[default]\naws_access_key_id = "AKIA"\naws_secret_access_key = "{SECRET}"\n', PAIR),
        (
            f'{{"AccessKey": {{"UserName": "hub", "AccessKeyId": "AKIA", "Status": "Active", '
            f'"SecretAccessKey": "{SECRET}", "CreateDate": "2026-01-01T00:00:00+00:00"}}}}',
            PAIR,
        ),
        (
            f'{{"url": "http://127.0.0.1:9000", "accessKey": "AKIA", "secretKey": "{SECRET}", '
            '"api": "s3v4", "path": "auto"}',
            PAIR,
        ),
        (f'{{"access_key_id": "AKIA", "secret_access_key": "{SECRET}", "session_token": ""}}', PAIR),
        (
            f'{{"Credentials": {{"AccessKeyId": "AKIA", "SecretAccessKey": "{SECRET}", "SessionToken": "token", '
            '"Expiration": "2026-11-21T12:00:00+00:00"}, "AssumedRoleUser": {"AssumedRoleId": "A:b", "Arn": "arn"},'
            ' "PackedPolicySize": 6}',
            TEMPORARY,
        ),
        (
            f'{{"Version": 1, "AccessKeyId": "AKIA", "SecretAccessKey": "{SECRET}", "SessionToken": "token", '
            '"Expiration": "2026-11-21T12:00:00Z"}',
            TEMPORARY,
        ),
        (
            f'{{"access_key": "AKIA", "secret_key": "{SECRET}", "session_token": "token", "expires": 1795262400}}',
            TEMPORARY,
        ),
        (
            f'access_key = "AKIA"\nsecret_key = "{SECRET}"\nsession_token = "token"\n'
            "expires = 2026-11-21T13:00:00+01:00\n",
            TEMPORARY,
        ),
        (
            f'{{"access_key": "AKIA", "secret_key": "{SECRET}", "role": "arn:aws:iam::1:role/hub", '
            '"external_id": "e"}',
            S3Credentials(access_key="AKIA", secret_key=SECRET, role="arn:aws:iam::1:role/hub", external_id="e"),
        ),
        ('{"ambient": true}', S3Ambient()),
        ('ambient = true\nrole = "arn:aws:iam::1:role/hub"\n', S3Ambient(role="arn:aws:iam::1:role/hub")),
    ],
)
def test_keys_for_s3(document: str, keys: Credentials) -> None:
    """Ours in two ways of writing, and the files and answers of AWS and MinIO as they come."""
    assert parse_keys(document.encode(), S3) == keys


def test_keys_for_google() -> None:
    """A service account's document, plain or in base64 of any cut, is kept as it is; workload identity has none."""
    text = json.dumps(ACCOUNT, indent=2)
    keys = GcsServiceAccount(document=text, client_email="hub@p.iam.gserviceaccount.com")
    for document in (
        text.encode(),
        b"\n" + text.encode() + b"\n",
        base64.b64encode(text.encode()),
        base64.encodebytes(text.encode()),
        base64.urlsafe_b64encode(text.encode()),
    ):
        assert parse_keys(document, GCS) == keys
    assert parse_keys(b'{"ambient": true}', GCS) == GcsAmbient()
    assert parse_keys(b'{"ambient": true, "client_email": "a@b"}', GCS) == GcsAmbient(client_email="a@b")


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        ('{"account": "acct1", "key": "c2VjcmV0"}', AzureKey(account="acct1", key="c2VjcmV0")),
        ('key = "c2VjcmV0"', AzureKey(account="acct1", key="c2VjcmV0")),
        (CONNECTION, AzureKey(account="acct1", key="c2VjcmV0")),
        (CONNECTION + ";\n", AzureKey(account="acct1", key="c2VjcmV0")),
        ('{"AccountName": "acct1", "AccountKey": "c2VjcmV0"}', AzureKey(account="acct1", key="c2VjcmV0")),
        (f'{{"tenant": "t.example", "client": "id", "secret": "{SECRET}"}}', CLIENT),
        (f'{{"appId": "id", "displayName": "hub", "password": "{SECRET}", "tenant": "t.example"}}', CLIENT),
        (
            f'{{"clientId": "id", "clientSecret": "{SECRET}", "tenantId": "t.example", "subscriptionId": "s",'
            ' "managementEndpointUrl": "https://x"}',
            CLIENT,
        ),
    ],
)
def test_keys_for_azure(document: str, keys: Credentials) -> None:
    """Ours, a connection string, and answers of Azure's command line; the account may be named by the URL alone."""
    assert parse_keys(document.encode(), AZURE) == keys


def test_a_connection_string_leads_where_the_url_leads() -> None:
    """Another server in it than the bucket's URL has is not quietly ignored."""
    text = "AccountName=acct1;AccountKey=c2VjcmV0;BlobEndpoint=http://127.0.0.1:10000/acct1;QueueEndpoint=http://x"
    assert parse_keys(text.encode(), AZURITE) == AzureKey(account="acct1", key="c2VjcmV0")
    for document, location in (
        (text, AZURE),
        (CONNECTION, AZURITE),
        (CONNECTION.replace("core.windows.net", "core.chinacloudapi.cn"), AZURE),
    ):
        with pytest.raises(InvalidInput, match="another server"):
            parse_keys(document.encode(), location)


@pytest.mark.parametrize(
    ("url", "document"),
    [
        (url, document)
        for url, documents in {
            "s3://lab?region=x": [
                "",
                "{",
                "[1]",
                "x = 1",
                "null",
                "{}",
                f'{{"access_key": "{SECRET}"}}',
                f'{{"secret_key": "{SECRET}"}}',
                f'{{"access_key": "", "secret_key": "{SECRET}"}}',
                f'{{"access_key": "a", "secret_key": "{SECRET}", "{SECRET}": 1}}',
                f'{{"access_key": "a", "secret_key": "{SECRET}", "secret_key": "b"}}',
                f'{{"access_key": "a", "secret_key": "{SECRET}", "secretKey": "b"}}',
                f'{{"access_key": "a", "secret_key": ["{SECRET}"]}}',
                f'{{"access_key": "a", "secret_key": "{SECRET}\\n"}}',
                f'{{"access_key": "a", "secret_key": "{SECRET}", "expires": "{SECRET}"}}',
                f'{{"access_key": "a", "secret_key": "{SECRET}", "expires": "2026-01-01T00:00:00"}}',
                f'{{"access_key": "a", "secret_key": "{SECRET}", "expires": true}}',
                f'{{"access_key": "a", "secret_key": "{SECRET}", "expires": -1}}',
                f'{{"ambient": true, "secret_key": "{SECRET}"}}',
                f'{{"ambient": "{SECRET}", "access_key": "a", "secret_key": "b"}}',
                f"[a]\naws_secret_access_key = {SECRET}\n[b]\naws_secret_access_key = {SECRET}\n",
                f"[default]\naws_access_key_id = a\naws_secret_access_key = {SECRET}\ns3 = {SECRET}\n",
                f"[a]\naws_access_key_id = a\n[a]\naws_secret_access_key = {SECRET}\n",
                f"AKIA:{SECRET}",
                json.dumps(ACCOUNT),
                "[" * 20_000,
                '{"a":' * 5_000,
                "x" * (MAX_KEYS + 1),
            ],
            "gs://lab": [
                "",
                "{}",
                SECRET,
                base64.b64encode(SECRET.encode()).decode(),
                f'{{"access_key": "a", "secret_key": "{SECRET}"}}',
                json.dumps(ACCOUNT | {"type": "authorized_user"}),
                json.dumps(ACCOUNT | {"type": "external_account"}),
                json.dumps(ACCOUNT | {"client_email": ""}),
                json.dumps(ACCOUNT | {"private_key": SECRET}),
                f'{{"ambient": true, "private_key": "{SECRET}"}}',
            ],
            "azblob://lab?account=acct1": [
                "",
                "{}",
                SECRET,
                f'{{"key": "{SECRET}"}}',
                f'{{"account": "acct2", "key": "{SECRET}"}}',
                f'{{"key": "c2VjcmV0", "tenant": "{SECRET}"}}',
                f'{{"tenant": "t", "client": "{SECRET}"}}',
                '{"ambient": true}',
                CONNECTION.replace("acct1", "acct2"),
                CONNECTION + f";{SECRET}=x",
                CONNECTION + ";AccountKey=c2VjcmV0",
                f"AccountName=acct1;SharedAccessSignature={SECRET}",
            ],
            "file:///srv": ["", f'{{"access_key": "a", "secret_key": "{SECRET}"}}'],
        }.items()
        for document in documents
    ],
)
def test_what_are_no_keys_is_refused_unseen(url: str, document: str) -> None:
    """The error says what is taken, never what was given: neither values nor names."""
    with pytest.raises(InvalidInput) as caught:
        parse_keys(document.encode(), parse_location(url))
    error = caught.value
    assert error.kind == "invalid-setting"
    assert SECRET not in f"{error!r} {error.hint} {error.data} {error.__cause__!r} {error.__context__!r}"


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode), st.sampled_from([S3, GCS, AZURE]))
def test_any_bytes_are_keys_or_refused(document: bytes, location: object) -> None:
    """Nothing raises anything but InvalidInput."""
    try:
        keys = parse_keys(document, location)  # type: ignore[arg-type]
    except InvalidInput:
        return
    assert decode_keys(encode_keys(keys)) == keys


@pytest.mark.parametrize(
    "keys",
    [
        PAIR,
        TEMPORARY,
        S3Ambient(role="r"),
        GcsServiceAccount(document="{}", client_email="a@b"),
        GcsAmbient(),
        AzureKey(account="acct1", key="c2VjcmV0"),
        CLIENT,
    ],
)
def test_what_is_sealed_is_read_back(keys: Credentials) -> None:
    """Every kind of keys survives, and the form says its version."""
    data = encode_keys(keys)
    assert decode_keys(data) == keys
    assert json.loads(data)["version"] == 1


@pytest.mark.parametrize("token", [None, "token"])
def test_what_the_first_hub_sealed_is_read(token: str | None) -> None:
    """Before there were kinds, keys were sealed as three fields."""
    data = json.dumps({"access_key": "AKIA", "secret_key": SECRET, "session_token": token}).encode()
    assert decode_keys(data) == S3Credentials(access_key="AKIA", secret_key=SECRET, session_token=token)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        f'{{"access_key": "{SECRET}"}}'.encode(),
        f'{{"access_key": "", "secret_key": "{SECRET}"}}'.encode(),
        f'{{"version": 2, "kind": "s3", "keys": {{"access_key": "a", "secret_key": "{SECRET}"}}}}'.encode(),
        f'{{"version": 1, "kind": "floppy", "keys": {{"secret_key": "{SECRET}"}}}}'.encode(),
        f'{{"version": 1, "kind": "s3", "keys": {{"secret_key": "{SECRET}"}}}}'.encode(),
        f'{{"version": 1, "kind": "s3", "keys": {{"access_key": "a", "secret_key": "{SECRET}"}}, "more": 1}}'.encode(),
    ],
)
def test_another_form_in_a_seal_is_corrupt(data: bytes) -> None:
    """What another version sealed, or nobody, is told apart and not shown."""
    with pytest.raises(Corrupt) as caught:
        decode_keys(data)
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"


def test_two_keys_of_one_service_account_can_be_told_apart() -> None:
    """The label has the beginning of the key's id, which is no secret; without one it is the account alone."""
    document = '{"private_key_id": "0123456789abcdef", "private_key": "hidden"}'
    assert GcsServiceAccount(document=document, client_email="a@b").label == "a@b (key 01234567)"
    assert GcsServiceAccount(document="{}", client_email="a@b").label == "a@b"
    assert GcsServiceAccount(document="nonsense", client_email="a@b").label == "a@b"
