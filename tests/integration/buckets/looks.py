"""Looking into buckets of every kind past the hub: each provider's own client with the owner's keys, or the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import boto3
from azure.storage.blob import ContainerClient
from botocore.config import Config
from google.cloud import storage
from google.oauth2 import service_account
from tests.servers.azurite import AzureServer
from tests.servers.gcs import GcsServer
from tests.servers.ministack import S3Server


class Look(Protocol):
    """What can be seen and changed in a bucket. Blocking."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Keys that begin so and their lengths, tombstones too."""
        ...

    def read(self, key: str) -> bytes:
        """An object's bytes."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class FolderLook:
    """A folder: the disk itself."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def sizes(self, prefix: str) -> dict[str, int]:
        found = {}
        for path in self._root.rglob("*"):
            key = path.relative_to(self._root)
            if str(key).startswith(prefix) and not any(part.startswith(".") for part in key.parts[:1]):
                try:
                    if path.is_file():
                        found[str(key)] = path.stat().st_size
                except FileNotFoundError:  # it left just now
                    continue
        return found

    def read(self, key: str) -> bytes:
        return (self._root / key).read_bytes()

    def close(self) -> None:
        """Nothing is held."""


class S3Look:
    """boto3, not as the hub uses it: its own paginator, no settings of a profile."""

    def __init__(self, server: S3Server, bucket: str) -> None:
        self._bucket = bucket
        self._client = boto3.client(
            "s3",
            region_name=server.region,
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )

    def sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix):
            found.update((item["Key"], item["Size"]) for item in page.get("Contents", []))
        return found

    def read(self, key: str) -> bytes:
        return self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def close(self) -> None:
        self._client.close()


class AzureLook:
    """azure-storage-blob with the account's key."""

    def __init__(self, server: AzureServer, container: str) -> None:
        credential = {"account_name": server.account, "account_key": server.key}
        self._client = ContainerClient(server.endpoint, container, credential=credential)

    def sizes(self, prefix: str) -> dict[str, int]:
        return {blob.name: blob.size for blob in self._client.list_blobs(name_starts_with=prefix)}

    def read(self, key: str) -> bytes:
        return bytes(self._client.download_blob(key).readall())

    def close(self) -> None:
        self._client.close()


class GcsLook:
    """google-cloud-storage with the service account, over the JSON API."""

    def __init__(self, server: GcsServer, bucket: str) -> None:
        credentials = service_account.Credentials.from_service_account_info(
            json.loads(server.document), scopes=["https://www.googleapis.com/auth/devstorage.full_control"]
        )
        self._client = storage.Client(
            project=server.project, credentials=credentials, client_options={"api_endpoint": server.endpoint}
        )
        self._bucket = self._client.bucket(bucket)

    def sizes(self, prefix: str) -> dict[str, int]:
        return {blob.name: int(blob.size) for blob in self._client.list_blobs(self._bucket, prefix=prefix)}

    def read(self, key: str) -> bytes:
        data: bytes = self._bucket.blob(key).download_as_bytes()
        return data

    def close(self) -> None:
        self._client.close()
