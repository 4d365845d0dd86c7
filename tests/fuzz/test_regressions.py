"""Bytes that once broke a decoder, and must not again. ``scripts/fuzz`` prints lines for this table."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.fuzz.table import TARGETS
from tests.fuzz.targets import attempt

from entrepot.core.errors import RetryLater
from entrepot_hub.adapters.buckets import azure_errors, s3_errors
from entrepot_hub.adapters.buckets.azure import _skew

BY_NAME = {target.name: target for target in TARGETS}
FOUND = [
    ("owner's mark", b'{"hub":"\x80"}'),
    ("NATS server's event", b'\x00{"server":{"id":"\xff"}}'),
    ("NATS server's event", b'\x02{"data":{"message":"\xff"}}'),
    ("another program's configuration", b'\x00a: !!int ""'),
    ("another program's configuration", b"\x00a: !!bool maybe"),
    ("another program's configuration", b"\x00a: !!timestamp x"),
    ("another program's configuration", b"\x00a: " + b"1:" * 200 + b"1.0"),
    ("another program's configuration", b"\x00" + b"[" * 30_000),
    ("bucket's keys", b'\x00{"access_key":"a","secret_key":"b","expires":"0001-01-01T00:00:00+23:59"}'),
    ("environment", b"S3_BUCKET_IN=\x80\nS3_BUCKET_OUT=\x80\nAWS_REGION=x"),
    ("environment", b"RIVER_EXTERNAL_MEDIA_STREAM_STORAGE_\x80=\x00"),
    ("words of settings and headers", b"\x00\x80"),
    ("words of settings and headers", b"\npostgresql://use\xffr@host/name"),
    ("hosts and names", b"\x00" + b"x" * 9000 + b"!"),
    ("words of settings and headers", b"\x05" + b"X" * 9000),
    ("body of a request", b'\x05{"' + b"x" * 9000 + b'":1}'),
    ("bucket's answer", b"HTTP/1.1 " + b"9" * 9000 + b"\r\n\r\n"),
    ("export of a hub", b"\x01entrepot hub export\n\x01\x02\x00\x00\x00" + b"\xff" * 90),
    ("metrics address", b"\x00127.0.0.1:" + b"9" * 5000),
]


@pytest.mark.blocking
@pytest.mark.parametrize(("name", "data"), FOUND, ids=range(len(FOUND)))
def test_what_was_found_is_mended(name: str, data: bytes) -> None:
    """Each of these inputs ends in a value or in one of our errors, told in few words."""
    attempt(BY_NAME[name], data)


def test_a_date_beyond_all_dates_is_none() -> None:
    """A bucket that names a year of eleven digits costs neither the error it told nor the hub's composure."""
    date = "Mon, 01 Jan 99999999999 00:00:00 GMT"
    told: Any = {"ResponseMetadata": {"HTTPHeaders": {"retry-after": date}}}
    refused = ClientError(told, "GetObject")
    assert s3_errors.retry_after(refused) is None
    with pytest.raises(RetryLater), azure_errors.translation("container"):
        _skew(date, 0.0, 0.0)
