"""Signed URLs of folder buckets open what was signed and nothing else."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from entrepot.core.errors import Denied, InvalidInput
from entrepot_hub.adapters.buckets.folder_urls import Permission, UrlSigner

SIGNER = UrlSigner("lab", "https://hub.example/base/", b"s" * 32)
KEYS = st.from_regex(r"[a-z0-9]{1,9}(/[A-Z~_-]{1,9}){0,3}", fullmatch=True)
ETAGS = st.none() | st.from_regex(r"[!#-~]{1,40}", fullmatch=True)
PERMISSIONS = st.builds(
    lambda key, expires, length, digest: Permission(
        method="PUT", key=key, expires=expires, length=length, digest=digest
    ),
    KEYS,
    st.integers(1, 2**40),
    st.integers(0, 2**40),
    st.binary(min_size=32, max_size=32),
) | st.builds(
    lambda key, expires, etag: Permission(method="GET", key=key, expires=expires, etag=etag),
    KEYS,
    st.integers(1, 2**40),
    ETAGS,
)


def parts(url: str) -> tuple[str, list[tuple[str, str]]]:
    """Key and decoded query of a URL."""
    split = urlsplit(url)
    return split.path.removeprefix("/base/bucket/lab/"), parse_qsl(split.query, keep_blank_values=True)


@given(PERMISSIONS)
def test_what_was_signed_is_read_back(permission: Permission) -> None:
    """The URL of a permission gives that permission until its end, and `expired` from then on."""
    url = SIGNER.sign(permission)
    assert url.startswith("https://hub.example/base/bucket/lab/")
    key, query = parts(url)
    assert SIGNER.verify(permission.method, key, query, permission.expires - 0.001) == permission
    with pytest.raises(Denied) as caught:
        SIGNER.verify(permission.method, key, query, permission.expires)
    assert caught.value.kind == "expired"


@given(PERMISSIONS, PERMISSIONS, st.data())
def test_no_part_fits_another_url(one: Permission, two: Permission, data: st.DataObject) -> None:
    """A field taken from another URL, whichever it is, closes the URL."""
    key, query = parts(SIGNER.sign(one))
    other_key, other_query = parts(SIGNER.sign(two))
    which = data.draw(st.sampled_from(["key", *(name for name, _ in query)]))
    other = dict(other_query)
    if which == "key":
        assume(key != other_key)
        key = other_key
    else:
        assume(other.get(which) != dict(query)[which])
        query = [(name, other.get(name, "") if name == which else value) for name, value in query]
    with pytest.raises(Denied) as caught:
        SIGNER.verify(one.method, key, query, 0)
    assert caught.value.kind == "bad-signature"


@given(PERMISSIONS, st.text(max_size=5), st.text(max_size=5))
def test_no_field_can_be_added_or_doubled(permission: Permission, name: str, value: str) -> None:
    """One field more, known or not, closes the URL."""
    key, query = parts(SIGNER.sign(permission))
    for more in ((name, value), query[0], query[-1], ("etag", value), ("length", "1")):
        with pytest.raises(Denied):
            SIGNER.verify(permission.method, key, [*query, more], 0)


@given(st.text(max_size=20), st.text(max_size=20), st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9))))
def test_any_text_is_only_denied(method: str, key: str, query: list[tuple[str, str]]) -> None:
    """Whatever comes instead of a signed URL is a bad signature and nothing worse."""
    with pytest.raises(Denied) as caught:
        SIGNER.verify(method, key, query, 0)
    assert caught.value.kind == "bad-signature"


def test_another_bucket_or_secret_does_not_open() -> None:
    """A URL is good for one bucket of one hub."""
    permission = Permission(method="GET", key="a", expires=10)
    key, query = parts(SIGNER.sign(permission))
    for signer in (UrlSigner("lab2", SIGNER.public_url, b"s" * 32), UrlSigner("lab", SIGNER.public_url, b"t" * 32)):
        with pytest.raises(Denied):
            signer.verify("GET", key, query, 0)


@pytest.mark.parametrize(
    ("name", "url", "secret"),
    [
        ("", "http://h", b"s" * 16),
        ("UPPER", "http://h", b"s" * 16),
        ("a/b", "http://h", b"s" * 16),
        ("a", "ftp://h", b"s" * 16),
        ("a", "http://", b"s" * 16),
        ("a", "http://h/?q", b"s" * 16),
        ("a", "http://h", b"s" * 15),
    ],
)
def test_wrong_settings_are_refused(name: str, url: str, secret: bytes) -> None:
    """A name, URL or secret that cannot work is refused when the signer is made."""
    with pytest.raises(InvalidInput) as caught:
        UrlSigner(name, url, secret)
    assert caught.value.kind == "invalid-setting"
    assert "s" * 15 not in repr(SIGNER)
