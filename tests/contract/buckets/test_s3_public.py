"""A bucket that nodes reach by another name than the hub, and one that the hub reaches over https only."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

from tests.contract.buckets.conftest import s3_settings
from tests.contract.buckets.requests import digest_of, send
from tests.servers.careless import Asked, run_careless
from tests.servers.ministack import S3Server

from entrepot_hub.adapters.buckets.s3 import S3Bucket

DATA = b"some bytes"


async def test_a_url_is_signed_for_the_name_that_nodes_use(ministack: S3Server) -> None:
    """URLs carry the public name and work under it and no other, while the hub goes its own way."""
    port = urlsplit(ministack.endpoint).port
    public = f"http://localhost:{port}"
    settings = replace(s3_settings(ministack, bucket="public-name"), public_endpoint=public)
    async with S3Bucket(settings, name="public") as bucket:
        put = await bucket.sign_put("k", len(DATA), digest_of(DATA), 300)
        assert put.url.startswith(public)
        inner = put.url.replace(public, ministack.endpoint)
        assert not (await send(put, DATA, url=inner)).accepted
        assert (await send(put, DATA)).accepted
        head = await bucket.head("k")
        assert head is not None
        get = await bucket.sign_get("k", head.etag, 300)
        assert (await send(get)).body == DATA
        assert not (await send(get, url=get.url.replace(public, ministack.endpoint))).accepted


async def test_the_hub_never_uses_the_public_name() -> None:
    """All that the hub asks, for its own looks, the probe and the examination, goes to its own endpoint."""
    asked: list[Asked] = []
    with run_careless(asked) as server:
        settings = replace(s3_settings(server), public_endpoint="http://public.invalid")
        async with S3Bucket(settings, name="inside") as bucket:
            await bucket.create(".entrepot", b"mine")
            await bucket.put_tombstone("k")
            await bucket.delete("k")
            await bucket.probe("p", expiry=False)
            await bucket.examine()
            signed = await bucket.sign_get("k", None, 60)
    assert signed.url.startswith("http://public.invalid/")
    assert {request.headers["host"] for request in asked} == {urlsplit(server.endpoint).netloc}
