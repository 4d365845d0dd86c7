"""What an S3 provider tells about a bucket, against a server that knows policies: facts, or why they are not known."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields, replace
from typing import Any

import boto3
import pytest
from tests.contract.buckets.conftest import s3_settings, serve_folder
from tests.servers.careless import run_careless
from tests.servers.ministack import S3Server
from tests.servers.process import free_port

from entrepot.core.errors import Denied, RetryLater
from entrepot_hub.adapters.buckets import Facts
from entrepot_hub.adapters.buckets.credentials import S3Credentials
from entrepot_hub.adapters.buckets.s3 import S3Bucket

pytestmark = pytest.mark.blocking
PRIVATE = dict.fromkeys(["BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"], True)


@pytest.fixture
def admin(ministack: S3Server) -> Iterator[Any]:
    """The bucket's owner."""
    client = client_of(ministack, "s3")
    yield client
    client.close()


def client_of(server: S3Server, service: str) -> Any:
    """A client of the server's administrator."""
    return boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=server.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )


@pytest.fixture
async def bucket(ministack: S3Server, request: pytest.FixtureRequest) -> AsyncIterator[S3Bucket]:
    """A new bucket with the mark of its owner below the prefix "ours"."""
    name = f"facts-{abs(hash(request.node.name)) % 10**9}"
    settings = replace(s3_settings(ministack, bucket=name), prefix="ours", profile="minio")
    async with S3Bucket(settings, name=name) as bucket:
        await bucket.create("ours/.entrepot", b"mine")
        yield bucket


async def test_a_plain_bucket(bucket: S3Bucket) -> None:
    """Of a bucket that nobody touched everything is known, and nothing stands against it."""
    facts = await bucket.examine()
    assert facts.clock_skew is not None
    assert abs(facts.clock_skew) < 60
    assert replace(facts, clock_skew=None) == Facts(
        region="us-east-1",
        versioning=False,
        soft_delete=0.0,
        object_lock=False,
        lifecycle=(),
        storage_class="STANDARD",
        cors=False,
        public_read=False,
        public_write=False,
        unknown={},
    )
    assert [entry.key for entry in (await bucket.list("")).entries] == ["ours/.entrepot"]


async def test_what_an_owner_should_know(bucket: S3Bucket, admin: Any) -> None:
    """Versioning, rules that touch the prefix and readers of other origins are told; what does not matter is not."""
    admin.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Enabled"})
    rules: list[dict[str, Any]] = [
        {"ID": "all", "Filter": {"Prefix": ""}, "Status": "Enabled", "Expiration": {"Days": 30}},
        {
            "ID": "below",
            "Filter": {"Prefix": "ours/4ec2"},
            "Status": "Enabled",
            "Transitions": [{"Days": 90, "StorageClass": "GLACIER"}],
        },
        {"ID": "off", "Filter": {"Prefix": ""}, "Status": "Disabled", "Expiration": {"Days": 1}},
        {"ID": "theirs", "Filter": {"Prefix": "theirs/"}, "Status": "Enabled", "Expiration": {"Days": 2}},
        {
            "ID": "tagged",
            "Filter": {"Tag": {"Key": "a", "Value": "b"}},
            "Status": "Enabled",
            "Expiration": {"Days": 3},
        },
        {
            "ID": "parts",
            "Filter": {"Prefix": ""},
            "Status": "Enabled",
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
        },
    ]
    admin.put_bucket_lifecycle_configuration(Bucket=bucket.name, LifecycleConfiguration={"Rules": rules})
    cors = {"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}]}
    admin.put_bucket_cors(Bucket=bucket.name, CORSConfiguration=cors)
    facts = await bucket.examine()
    assert (facts.versioning, facts.cors) == (True, True)
    assert facts.lifecycle == (
        "rule 'all' removes objects after 30 days",
        "rule 'below' moves objects to GLACIER after 90 days",
    )


async def test_objects_that_may_be_locked(ministack: S3Server, admin: Any) -> None:
    """A bucket that locks by default is told; so is the class in which its objects lie."""
    admin.create_bucket(Bucket="facts-locked", ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    admin.put_object_lock_configuration(
        Bucket="facts-locked", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    async with S3Bucket(s3_settings(ministack, bucket="facts-locked"), name="locked") as bucket:
        facts = await bucket.examine()
        assert (facts.object_lock, facts.versioning) == (True, True)
        assert "mark" in facts.unknown["storage_class"]
        admin.put_object(Bucket="facts-locked", Key=".entrepot", Body=b"x", StorageClass="STANDARD_IA")
        assert (await bucket.examine()).storage_class == "STANDARD_IA"


async def test_the_region_where_it_really_is(ministack: S3Server) -> None:
    """A bucket in another region than the first says so."""
    far = replace(s3_settings(ministack, bucket="facts-far"), region="eu-central-1", profile="aws")
    async with S3Bucket(far, name="far") as bucket:
        assert (await bucket.examine()).region == "eu-central-1"


@pytest.mark.parametrize("marked", [True, False])
async def test_what_everybody_may(bucket: S3Bucket, admin: Any, marked: bool) -> None:
    """A policy that lets everybody in is found by trying; reading stays unknown where there is nothing to try."""
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:PutObject"],
        "Resource": f"arn:aws:s3:::{bucket.name}/*",
    }
    if not marked:
        await bucket.delete("ours/.entrepot")
    admin.delete_public_access_block(Bucket=bucket.name)
    admin.put_bucket_policy(Bucket=bucket.name, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    facts = await bucket.examine()
    # ministack does not tell whether a policy is public: without an object to try, reading is not known.
    assert (facts.public_read, facts.public_write) == (True if marked else None, True)
    assert ("public_read" in facts.unknown) is not marked
    assert len((await bucket.list("")).entries) == int(marked)
    binds = await bucket.probe("ours", expiry=False)
    assert not binds.create_only
    admin.put_public_access_block(Bucket=bucket.name, PublicAccessBlockConfiguration=PRIVATE)
    facts = await bucket.examine()
    assert (facts.public_read, facts.public_write) == (False, False)


async def test_what_the_key_may_not_ask_is_named(ministack: S3Server, bucket: S3Bucket) -> None:
    """A key with the least rights learns little, and for each fact the permission that is lacking is named."""
    iam = client_of(ministack, "iam")
    name = bucket.name
    iam.create_user(UserName=name)
    statement = {
        "Effect": "Allow",
        "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
        "Resource": f"arn:aws:s3:::{name}/*",
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=name, PolicyName="least", PolicyDocument=document)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    iam.close()
    pair = S3Credentials(access_key=key["AccessKeyId"], secret_key=key["SecretAccessKey"])
    settings = replace(
        s3_settings(ministack, bucket=name), credentials=pair, prefix="ours", create=False, profile="minio"
    )
    async with S3Bucket(settings, name="least") as least:
        facts = await least.examine()
    assert {name: reason.removeprefix("the key lacks ") for name, reason in facts.unknown.items()} == {
        "region": "s3:GetBucketLocation",
        "versioning": "s3:GetBucketVersioning",
        "object_lock": "s3:GetBucketObjectLockConfiguration",
        "lifecycle": "s3:GetLifecycleConfiguration",
        "cors": "s3:GetBucketCORS",
        "clock_skew": "the bucket's answers bear no date",
    }
    assert (facts.public_read, facts.public_write, facts.storage_class) == (False, False, "STANDARD")


async def test_a_server_that_knows_none_of_it(rclone: S3Server) -> None:
    """A simple server's silence is told for each fact, and none is made up."""
    async with S3Bucket(s3_settings(rclone, bucket="facts"), name="simple") as bucket:
        facts = await bucket.examine()
    for field in fields(Facts):
        if field.name != "unknown":
            assert (getattr(facts, field.name) is None) is (field.name in facts.unknown), field.name


async def test_a_server_that_lets_everybody_do_everything() -> None:
    """Where nobody's signature is asked for, that shows, and nothing that was tried stays."""
    with run_careless() as server:
        async with S3Bucket(s3_settings(server), name="open") as bucket:
            await bucket.create(".entrepot", b"mine")
            facts = await bucket.examine()
            assert (facts.public_read, facts.public_write) == (True, True)
            assert [entry.key for entry in (await bucket.list("")).entries] == [".entrepot"]


async def test_what_keeps_every_question_from_being_asked(rclone: S3Server) -> None:
    """Nobody there, or keys that are wrong altogether, is an error and no list of unknown facts."""
    away = S3Bucket(replace(s3_settings(S3Server(f"http://127.0.0.1:{free_port()}")), attempts=1), name="away")
    with pytest.raises(RetryLater):
        await away.examine()
    await away.aclose()
    wrong = S3Bucket(s3_settings(replace(rclone, secret_key="wrong")), name="wrong")
    with pytest.raises(Denied):
        await wrong.examine()
    await wrong.aclose()


async def test_a_folder(tmp_path: Any) -> None:
    """What does not exist for a folder is known not to."""
    async with serve_folder(tmp_path / "bucket") as folder:
        facts = await folder.examine()
    assert replace(facts, unknown={}) == Facts(
        storage_class="file system",
        versioning=False,
        soft_delete=0.0,
        object_lock=False,
        lifecycle=(),
        cors=False,
        public_read=False,
        public_write=False,
        clock_skew=0.0,
    )
    assert facts.unknown == {}
