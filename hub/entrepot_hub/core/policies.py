"""The least that a bucket's provider has to allow the hub, as people give it to the provider.

Sources: AWS "Actions, resources, and condition keys for Amazon S3"; Google Cloud "IAM permissions for JSON methods" and
"IAM Conditions" for resource names; Azure "Assign an Azure role for access to blob data".
"""

from __future__ import annotations

from typing import Any, Final

#: What is lost without the permission to list.
WITHOUT_LIST: Final = (
    "bucket and ledger cannot be compared: what a late upload or somebody's hand left there is not found, and stays "
    "billed",
    "the ledger cannot be made again from the bucket if the hub's database is lost",
    "an object that is not there is answered with 'forbidden': the hub has to guess that it is absent",
)

_S3_DOCTOR: Final = (
    "s3:GetBucketAcl",
    "s3:GetBucketCORS",
    "s3:GetBucketLocation",
    "s3:GetBucketObjectLockConfiguration",
    "s3:GetBucketPolicyStatus",
    "s3:GetBucketPublicAccessBlock",
    "s3:GetBucketVersioning",
    "s3:GetLifecycleConfiguration",
)
_GCS_OBJECTS: Final = ("storage.objects.create", "storage.objects.delete", "storage.objects.get")
_GCS_LIST: Final = "storage.objects.list"
_GCS_DOCTOR: Final = ("storage.buckets.get", "storage.buckets.getIamPolicy")
_AZURE_BLOBS: Final = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"


def s3_policy(bucket: str, prefix: str = "", *, listing: bool = True, create: bool = False) -> dict[str, Any]:
    """An IAM policy for a user or a role: objects below ``prefix``, the listing of them, the looks of the doctor, and
    with ``create`` the making of the bucket."""
    place = f"arn:aws:s3:::{bucket}"
    below = f"{prefix}/" if prefix else ""
    statements: list[dict[str, Any]] = [
        {
            "Sid": "Objects",
            "Effect": "Allow",
            "Action": ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"],
            "Resource": f"{place}/{below}*",
        }
    ]
    if listing:
        statement: dict[str, Any] = {
            "Sid": "List",
            "Effect": "Allow",
            "Action": ["s3:ListBucket"],
            "Resource": place,
        }
        if prefix:
            statement["Condition"] = {"StringLike": {"s3:prefix": [prefix, f"{below}*"]}}
        statements.append(statement)
    statements.append({"Sid": "Doctor", "Effect": "Allow", "Action": list(_S3_DOCTOR), "Resource": place})
    if create:
        statements.append({"Sid": "Create", "Effect": "Allow", "Action": ["s3:CreateBucket"], "Resource": place})
    return {"Version": "2012-10-17", "Statement": statements}


def gcs_commands(bucket: str, prefix: str = "", *, listing: bool = True, ambient: bool = False) -> list[str]:
    """The ``gcloud`` commands that make a role with just these permissions and give it to the hub's service account.

    A condition on object names does not cover listing: with a prefix the listing is given for the whole bucket by a
    role of its own. ``ambient``: the hub has no key and signs through the IAM service.
    """
    project, account = "PROJECT", "ACCOUNT@PROJECT.iam.gserviceaccount.com"
    member = f"--member=serviceAccount:{account}"
    where = ""
    if prefix:
        begins = f"projects/_/buckets/{bucket}/objects/{prefix}/"
        where = f" --condition='title=entrepot,expression=resource.name.startsWith(\"{begins}\")'"
    commands = [
        f"gcloud iam roles create entrepotObjects --project={project} --permissions={','.join(_GCS_OBJECTS)}",
        f"gcloud storage buckets add-iam-policy-binding gs://{bucket} {member} "
        f"--role=projects/{project}/roles/entrepotObjects{where}",
    ]
    looks = ((_GCS_LIST,) if listing else ()) + _GCS_DOCTOR
    commands += [
        f"gcloud iam roles create entrepotLooks --project={project} --permissions={','.join(looks)}",
        f"gcloud storage buckets add-iam-policy-binding gs://{bucket} {member} "
        f"--role=projects/{project}/roles/entrepotLooks",
    ]
    if ambient:
        commands.append(
            f"gcloud iam service-accounts add-iam-policy-binding {account} {member} "
            "--role=roles/iam.serviceAccountTokenCreator"
        )
    return commands


def azure_role(account: str, container: str) -> dict[str, Any]:
    """A custom role for an application. An account key needs none: it may do everything with the whole account, so an
    application is to be preferred. ``blobs/read`` includes the listing, which cannot be taken away."""
    scope = f"/subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.Storage/storageAccounts/{account}"
    return {
        "Name": "entrepot hub",
        "Description": f"Reads, writes and deletes the blobs of {container}, and signs URLs for them",
        "Actions": [
            "Microsoft.Storage/storageAccounts/blobServices/generateUserDelegationKey/action",
            "Microsoft.Storage/storageAccounts/blobServices/read",
            "Microsoft.Storage/storageAccounts/blobServices/containers/read",
        ],
        "DataActions": [
            f"{_AZURE_BLOBS}/add/action",
            f"{_AZURE_BLOBS}/delete",
            f"{_AZURE_BLOBS}/read",
            f"{_AZURE_BLOBS}/write",
        ],
        "AssignableScopes": [f"{scope}/blobServices/default/containers/{container}"],
    }


def lost(provider: str, *, listing: bool) -> tuple[str, ...]:
    """What does not work with that policy, in sentences."""
    if listing or provider in {"azblob", "file"}:
        return ()
    return WITHOUT_LIST if provider == "s3" else WITHOUT_LIST[:2]


def folder_commands(path: str) -> list[str]:
    """A folder belongs to the user that the hub runs as, and to nobody else."""
    return [f"chown -R HUBUSER {path}", f"chmod 700 {path}"]
