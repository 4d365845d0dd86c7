"""Clients of boto3 that know only what they are told.

boto3 reads the environment (``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ``AWS_CA_BUNDLE``, …) and ``~/.aws``. A channel's
bucket must not depend on how somebody set up the hub's machine for something else, so all of that is shut out; only
:mod:`entrepot_hub.adapters.buckets.s3_keys` looks there, for a bucket whose owner said so.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.loaders import Loader, create_loader

from entrepot_hub.adapters.buckets.s3_settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def make_s3_client(settings: S3Settings, credentials: Credentials) -> S3Client:
    """A client for the bucket. Each call is one attempt: trying again is :mod:`.s3_retries`' business. Blocking."""
    session = _session(credentials)
    client = session.client(
        "s3",
        region_name=settings.region,
        endpoint_url=settings.hub_endpoint,
        verify=None if settings.ca is None else str(settings.ca),
        config=_config(settings).merge(
            Config(
                signature_version="s3v4",
                s3={"addressing_style": "virtual" if settings.virtual else "path"},
            )
        ),
    )
    client.meta.events.register_last("before-parameter-build.s3", _stay)
    client.meta.events.register_last("before-call.s3", _send_at_once)
    return client


def make_sts_client(settings: S3Settings, credentials: Credentials) -> Any:
    """A client for where the bucket's roles are assumed. Blocking."""
    return _session(credentials).client(
        "sts",
        region_name=settings.region,
        endpoint_url=settings.roles_endpoint,
        verify=None if settings.ca is None else str(settings.ca),
        config=_config(settings),
    )


def _config(settings: S3Settings) -> Config:
    return Config(
        # Else an https PUT turns into aws-chunked with a trailer, which R2 and GCS refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        max_pool_connections=settings.threads,
        retries={"mode": "standard", "total_max_attempts": 1},
        use_dualstack_endpoint=False,
        use_fips_endpoint=False,
    )


def _session(credentials: Credentials) -> boto3.session.Session:
    variables: dict[str, Any] = {
        name: (None, None, default, conversion)
        for name, (_, _, default, conversion) in botocore.session.Session.SESSION_VARIABLES.items()
    }
    for name in ("config_file", "credentials_file"):
        variables[name] = (None, None, os.devnull, None)
    session = botocore.session.Session(session_vars=variables)
    session.register_component("credential_provider", _Given(credentials))
    session.register_component("data_loader", _descriptions())
    return boto3.session.Session(botocore_session=session)


@functools.cache
def _descriptions() -> Loader:
    """boto3's descriptions of the services, read from the disk once for all buckets."""
    return create_loader()


class _Given:
    """botocore's chain of providers, cut down to what is given."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def load_credentials(self) -> Credentials:
        return self._credentials


def _stay(context: dict[str, Any], **_: object) -> None:
    """Keep botocore from looking for the bucket in other regions: ours is stated, a wrong one is to be told.

    A server that answers everything with 301 would send it into an endless recursion besides.
    """
    context.setdefault("s3_redirect", {})["redirected"] = True


def _send_at_once(params: dict[str, Any], **_: object) -> None:
    """Keep botocore from asking first whether it may send a body: who does not answer that (R2) costs a second each
    time, and what the hub writes is small."""
    params["headers"].pop("Expect", None)
