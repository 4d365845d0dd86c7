"""A strict way to fake-gcs-server: what Google checks and the fake server does not, checked as Google documents it.

Signed URLs (GOOG4-RSA-SHA256): the canonical request is put together here from the request that arrived, with none of
the client's code, and the signature is verified with the public key; every signed header has to be there, every
``x-goog-`` header has to be signed; dates, expiry and scope are checked. ``x-goog-content-length-range``,
``Content-MD5``, ``x-goog-if-generation-match`` and ``If-Match`` are enforced before anything is visible. Calls of the
JSON API need a bearer token that was given out here: by the token endpoint, for a signed assertion, or by a metadata
server like that of a machine in Google's cloud. Generations as preconditions, pages and denials are made up for too.

All writes pass here one at a time, which makes conditions and changes one step.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import io
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import aiohttp
import yarl
from aiohttp import web
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

EMAIL = "hub@entrepot-tests.iam.gserviceaccount.com"
PROJECT = "entrepot-tests"
#: Whom assertions are for, wherever they are sent.
TOKEN_AUDIENCE = "https://oauth2.googleapis.com/token"
ALGORITHM = "GOOG4-RSA-SHA256"
#: Seconds that a signature's date may lie ahead.
MAX_AHEAD = 15 * 60
_DATE = re.compile(r"\d{8}T\d{6}Z")
_OBJECT = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o/([^/]+)")
_RECORD = re.compile(r"/storage/v1/b/([^/]+)(/iam|/defaultObjectAcl|/o)?")
_ANY_SIZE = 1 << 30


class Refused(Exception):
    """What Google answers instead: a status, a code, and words."""

    def __init__(self, status: int, code: str, words: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.words = status, code, words


@dataclass
class Control:
    """What tests may turn and look at.

    Turned: permissions that are denied, keys of objects without an MD5 (as composed ones), what the record of a bucket
    says besides, its policy and the list of its new objects; the life of tokens and the time they take in seconds, and
    what is said instead. Looked at: how many tokens were given out, what was signed by the IAM service, the requests
    that came on signed URLs (method, path, headers)."""

    denied: set[str] = field(default_factory=set)
    without_md5: set[str] = field(default_factory=set)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    lists: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    token_life: int = 3600
    token_delay: float = 0.0
    token_error: tuple[int, str] | None = None
    tokens_given: int = 0
    blobs_signed: int = 0
    valid_tokens: dict[str, float] = field(default_factory=dict)
    signed_requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)


class GcsProxy:
    """The handler of all requests, in front of a fake server at ``upstream``."""

    def __init__(self, upstream: str, key: rsa.RSAPrivateKey, control: Control) -> None:
        self._upstream = upstream
        self._key = key
        self._control = control
        self._writing = asyncio.Lock()
        self._uploads: dict[str, tuple[str, str | None]] = {}
        self._client: aiohttp.ClientSession | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        path = request.path
        xml = False
        try:
            if path == "/token":
                return await self._token(request)
            if path.startswith("/computeMetadata/") or path == "/":
                return await self._metadata(request)
            if path.endswith(":signBlob"):
                return await self._sign_blob(request)
            if path.startswith(("/storage/v1/", "/download/storage/v1/", "/upload/storage/v1/")):
                return await self._json(request)
            xml = True
            return await self._xml(request)
        except Refused as refused:
            return _xml_error(refused) if xml else _json_error(refused)

    async def close(self) -> None:
        """Let go of the fake server."""
        if self._client is not None:
            await self._client.close()

    # --- signed URLs: the XML API ------------------------------------------------------------------------

    async def _xml(self, request: web.Request) -> web.Response:
        bucket, _, key = unquote(request.raw_path.partition("?")[0]).lstrip("/").partition("/")
        verify(request, self._key.public_key(), time.time())
        self._control.signed_requests.append((request.method, request.path, dict(request.headers)))
        if request.method == "PUT":
            return await self._xml_put(request, bucket, key)
        if request.method in {"GET", "HEAD"}:
            return await self._xml_get(request, bucket, key)
        raise Refused(405, "MethodNotAllowed")

    async def _xml_put(self, request: web.Request, bucket: str, key: str) -> web.Response:
        least, most = _length_range(request.headers.get("x-goog-content-length-range"))
        if request.content_length is not None:
            _check_length(request.content_length, least, most)
        try:
            data = await request.read()
        except (ConnectionError, web.RequestPayloadError) as error:
            raise Refused(400, "IncompleteBody", "The request ended before its body did.") from error
        _check_length(len(data), least, most)
        _check_md5(request.headers.get("Content-MD5"), data)
        async with self._writing:
            record = await self._record(bucket, key)
            wanted = request.headers.get("x-goog-if-generation-match")
            if wanted is not None and wanted != (record or {}).get("generation", "0"):
                raise Refused(
                    412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold."
                )
            status, body = await self._pass(
                "POST",
                f"/upload/storage/v1/b/{bucket}/o",
                params={"uploadType": "media", "name": key},
                data=data,
                headers={"Content-Type": request.content_type},
            )
        if status == 404:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist.")
        written = json.loads(body)
        return web.Response(status=200, headers=_about(written))

    async def _xml_get(self, request: web.Request, bucket: str, key: str) -> web.Response:
        record = await self._record(bucket, key)
        if record is None or request.query.get("generation", record["generation"]) != record["generation"]:
            raise Refused(404, "NoSuchKey", "The specified key does not exist.")
        headers = _about(record)
        if request.headers.get("If-Match", headers["ETag"]) != headers["ETag"]:
            raise Refused(412, "PreconditionFailed")
        _, data = await self._pass("GET", f"/download/storage/v1/b/{bucket}/o/{quote(key, safe='')}", {"alt": "media"})
        status, begin, end = _range(request.headers.get("Range"), len(data))
        if status == 416:
            raise Refused(416, "InvalidRange", "The requested range cannot be satisfied.")
        if status == 206:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        return web.Response(status=status, headers=headers, body=data[begin:end])

    # --- the JSON API --------------------------------------------------------------------------------------

    async def _json(self, request: web.Request) -> web.Response:
        self._check_token(request)
        path = request.raw_path.partition("?")[0]
        query = dict(request.query)
        if found := _OBJECT.fullmatch(path):
            return await self._json_object(request, found[1], unquote(found[2]), query)
        if path.startswith("/upload/"):
            self._allow("storage.objects.create")
            data = await request.read()
            status, _ = await self._pass("GET", f"/storage/v1/b/{path.split('/')[5]}")
            if status == 404:
                raise Refused(404, "notFound", "The specified bucket does not exist.")
            async with self._writing:
                return await self._json_upload(request, path.split("/")[5], query, data)
        if found := _RECORD.fullmatch(path):
            return await self._json_bucket(found[1], found[2] or "", query)
        if path == "/storage/v1/b" and request.method == "POST":
            self._allow("storage.buckets.create")
            data = await request.read()
            wanted = json.loads(data)
            answer = await self._forward(request, data)
            if answer.status == 200:
                self._control.records.setdefault(wanted["name"], {}).update(wanted)
            return answer
        raise Refused(404, "notFound", "Not Found")

    async def _json_upload(self, request: web.Request, bucket: str, query: dict[str, str], data: bytes) -> web.Response:
        """The fake server holds conditions for uploads in one piece; those of several are held here."""
        if query.get("uploadType") != "resumable":
            return await self._forward(request, data)
        key, wanted = self._uploads.get(query.get("upload_id", ""), ("", None))
        if "upload_id" not in query:
            key, wanted = query.get("name") or json.loads(data)["name"], query.get("ifGenerationMatch")
        record = await self._record(bucket, key)
        if wanted not in {None, "0" if record is None else record["generation"]}:
            raise Refused(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
        answer = await self._forward(request, data)
        if "Location" in answer.headers:
            self._uploads[dict(parse_qsl(answer.headers["Location"].partition("?")[2]))["upload_id"]] = (key, wanted)
        return answer

    async def _json_object(self, request: web.Request, bucket: str, key: str, query: dict[str, str]) -> web.Response:
        verb = {"GET": "get", "DELETE": "delete"}[request.method]
        self._allow(f"storage.objects.{verb}")
        async with self._writing:
            record = await self._record(bucket, key)
            generation = "0" if record is None else record["generation"]
            if record is None or query.get("generation", generation) != generation:
                raise await self._absent(bucket, key)
            if query.get("ifGenerationMatch", generation) != generation:
                raise Refused(412, "conditionNotMet", "At least one of the pre-conditions you specified did not hold.")
            answer = await self._forward(request, b"")
            if request.method == "GET" and key in self._control.without_md5 and "alt" not in query:
                return web.json_response(self._without_md5(record))
            return answer

    def _without_md5(self, record: dict[str, Any]) -> dict[str, Any]:
        hidden = record["name"] in self._control.without_md5
        return {name: value for name, value in record.items() if not (hidden and name == "md5Hash")}

    async def _absent(self, bucket: str, key: str) -> Refused:
        status, _ = await self._pass("GET", f"/storage/v1/b/{bucket}")
        if status == 404:
            return Refused(404, "notFound", "The specified bucket does not exist.")
        self._allow("storage.objects.list")
        return Refused(404, "notFound", f"No such object: {bucket}/{key}")

    async def _json_bucket(self, bucket: str, part: str, query: dict[str, str]) -> web.Response:
        status, body = await self._pass("GET", f"/storage/v1/b/{bucket}")
        if status == 404:
            raise Refused(404, "notFound", "The specified bucket does not exist.")
        if part == "/o":
            self._allow("storage.objects.list")
            return await self._json_list(bucket, query)
        if part:
            self._allow("storage.buckets.getIamPolicy")
            if part == "/iam":
                return web.json_response(self._control.policies.get(bucket, {"bindings": []}))
            return web.json_response({"items": self._control.lists.get(bucket, [])})
        self._allow("storage.buckets.get")
        return web.json_response(json.loads(body) | self._control.records.get(bucket, {}))

    async def _json_list(self, bucket: str, query: dict[str, str]) -> web.Response:
        wanted = {name: value for name, value in query.items() if name in {"prefix", "startOffset"}}
        _, body = await self._pass("GET", f"/storage/v1/b/{bucket}/o", wanted)
        items = [item for item in json.loads(body).get("items", []) if item["name"] > query.get("pageToken", "")]
        items = [self._without_md5(item) for item in items]
        size = min(int(query.get("maxResults", "1000")), 1000)
        answer: dict[str, Any] = {"kind": "storage#objects", "items": items[:size]}
        if len(items) > size:
            answer["nextPageToken"] = items[size - 1]["name"]
        return web.json_response(answer)

    def _allow(self, permission: str) -> None:
        if permission in self._control.denied:
            words = f"{EMAIL} does not have {permission} access to the Google Cloud Storage bucket."
            raise Refused(403, "forbidden", words)

    def _check_token(self, request: web.Request) -> None:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind != "Bearer" or self._control.valid_tokens.get(token, 0) < time.time():
            raise Refused(401, "authError", "Invalid Credentials")

    # --- tokens and signatures ------------------------------------------------------------------------------

    async def _token(self, request: web.Request) -> web.Response:
        form = await request.post()
        assertion = str(form.get("assertion", ""))
        head, _, rest = assertion.partition(".")
        claims_text, _, signature = rest.partition(".")
        try:
            self._key.public_key().verify(
                _unpadded(signature), f"{head}.{claims_text}".encode(), padding.PKCS1v15(), hashes.SHA256()
            )
            claims = json.loads(_unpadded(claims_text))
        except (InvalidSignature, ValueError):
            return web.json_response(
                {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}, status=400
            )
        now = time.time()
        if (claims["iss"], claims["aud"]) != (EMAIL, TOKEN_AUDIENCE) or not (
            abs(now - claims["iat"]) < 300 and now < claims["exp"] <= claims["iat"] + 3600
        ):
            words = "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe."
            return web.json_response({"error": "invalid_grant", "error_description": words}, status=400)
        return await self._give_token()

    async def _give_token(self) -> web.Response:
        control = self._control
        await asyncio.sleep(control.token_delay)
        if control.token_error is not None:
            status, code = control.token_error
            return web.json_response({"error": code, "error_description": code}, status=status)
        control.tokens_given += 1
        token = secrets.token_hex(16)
        control.valid_tokens[token] = time.time() + control.token_life
        return web.json_response({"access_token": token, "expires_in": control.token_life, "token_type": "Bearer"})

    async def _metadata(self, request: web.Request) -> web.Response:
        if request.path != "/" and request.headers.get("Metadata-Flavor") != "Google":
            raise Refused(403, "forbidden", "Missing required header Metadata-Flavor")
        tail = request.path.removeprefix("/computeMetadata/v1/")
        answer = web.Response()
        if tail.endswith("/token"):
            answer = await self._give_token()
        elif tail.startswith("instance/service-accounts/"):
            answer = web.json_response({"email": EMAIL, "scopes": [], "aliases": ["default"]})
        elif tail == "project/project-id":
            answer = web.Response(text=PROJECT)
        elif tail == "universe/universe-domain":
            answer = web.Response(status=404)
        answer.headers["Metadata-Flavor"] = "Google"
        return answer

    async def _sign_blob(self, request: web.Request) -> web.Response:
        self._check_token(request)
        self._allow("iam.serviceAccounts.signBlob")
        if f"/{EMAIL}:" not in unquote(request.path):
            raise Refused(404, "NOT_FOUND", "Unknown service account")
        payload = base64.b64decode((await request.json())["payload"])
        self._control.blobs_signed += 1
        signature = self._key.sign(payload, padding.PKCS1v15(), hashes.SHA256())
        return web.json_response({"keyId": "1", "signedBlob": base64.b64encode(signature).decode()})

    # --- the fake server ------------------------------------------------------------------------------------

    async def _record(self, bucket: str, key: str) -> dict[str, Any] | None:
        status, body = await self._pass("GET", f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}")
        return None if status == 404 else json.loads(body)

    async def _forward(self, request: web.Request, data: bytes) -> web.Response:
        kept = ("Content-Type", "Range", "Content-Range", "X-Upload-Content-Type", "X-Upload-Content-Length", "Host")
        headers = {name: request.headers[name] for name in kept if name in request.headers}
        async with self._session().request(
            request.method, self._url(request.raw_path), data=io.BytesIO(data), headers=headers
        ) as answer:
            body = await answer.read()
            back = ("Content-Type", "Content-Range", "Location", "Range", "X-Goog-Generation", "X-Goog-Hash")
            return web.Response(
                status=answer.status,
                body=body,
                headers={name: answer.headers[name] for name in back if name in answer.headers},
            )

    async def _pass(
        self,
        method: str,
        path: str,
        params: dict[str, str] | None = None,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in (params or {}).items())
        async with self._session().request(
            method,
            self._url(f"{path}?{query}".rstrip("?")),
            data=None if data is None else io.BytesIO(data),
            headers=headers,
        ) as answer:
            return answer.status, await answer.read()

    def _url(self, raw_path: str) -> yarl.URL:
        return yarl.URL(self._upstream + raw_path, encoded=True)

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), auto_decompress=False)
        return self._client


def verify(request: web.Request, key: rsa.RSAPublicKey, now: float) -> None:
    """Whether the request is what somebody with the key signed. Raises :class:`Refused` as Google answers.

    By the pages "Signatures" and "Canonical requests" of Google's documentation. Google's host has no port; here the
    host is taken with its port, as the client signs it.
    """
    raw_path, _, raw_query = request.raw_path.partition("?")
    pairs = parse_qsl(raw_query, keep_blank_values=True)
    fields = dict(pairs)
    if "X-Goog-Signature" not in fields:
        raise Refused(403, "AccessDenied", "Anonymous caller does not have access to the Google Cloud Storage object.")
    if len(fields) != len(pairs):
        raise Refused(400, "InvalidArgument", "A parameter is given twice")
    try:
        algorithm, credential, date, expires, names = (
            fields[f"X-Goog-{name}"] for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders")
        )
    except KeyError as error:
        raise Refused(400, "InvalidArgument", f"{error} is missing") from error
    if algorithm != ALGORITHM or not _DATE.fullmatch(date) or not expires.isascii() or not expires.isdecimal():
        raise Refused(400, "InvalidArgument")
    scope = f"{date[:8]}/auto/storage/goog4_request"
    if credential != f"{EMAIL}/{scope}":
        raise Refused(400 if "/" in credential else 403, "InvalidArgument", "The credential is not known")
    begin = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    if not 1 <= int(expires) <= 7 * 24 * 3600:
        raise Refused(400, "AuthorizationQueryParametersError")
    if begin > now + MAX_AHEAD:
        raise Refused(403, "AccessDenied")
    signed = names.split(";")
    if signed != sorted(set(signed)) or names != names.lower() or "host" not in signed:
        raise Refused(400, "MalformedSecurityHeader", "Signed headers are sorted, in lower case, with host")
    for name in signed:
        if len(request.headers.getall(name, [])) != 1:
            raise Refused(400, "MalformedSecurityHeader", f"Header {name} was signed and is not in the request")
    for name in request.headers:
        if name.lower().startswith(("x-goog-", "x-amz-")) and name.lower() not in signed:
            raise Refused(400, "MalformedSecurityHeader", f"Header {name} is in the request and was not signed")
    query = sorted((quote(name, safe=""), quote(value, safe="")) for name, value in pairs if name != "X-Goog-Signature")
    canonical = "\n".join(
        [
            request.method,
            quote(unquote(raw_path), safe="/"),
            "&".join(f"{name}={value}" for name, value in query),
            *(f"{name}:{' '.join(request.headers[name].split())}" for name in signed),
            "",
            names,
            request.headers["x-goog-content-sha256"] if "x-goog-content-sha256" in signed else "UNSIGNED-PAYLOAD",
        ]
    )
    message = "\n".join([ALGORITHM, date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    try:
        signature = binascii.unhexlify(fields["X-Goog-Signature"])
        key.verify(signature, message.encode(), padding.PKCS1v15(), hashes.SHA256())
    except (ValueError, InvalidSignature) as error:
        raise Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.") from error
    if now >= begin + int(expires):
        raise Refused(400, "ExpiredToken", "The provided token has expired. Request signature expired.")


def make_document(key: rsa.RSAPrivateKey, endpoint: str) -> str:
    """The JSON document of the service account, as Google lets people download it."""
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return json.dumps(
        {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "0123456789abcdef",
            "private_key": pem,
            "client_email": EMAIL,
            "client_id": "1",
            "token_uri": f"{endpoint}/token",
        }
    )


def _length_range(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, _ANY_SIZE
    least, comma, most = text.partition(",")
    if not (comma and least.isdecimal() and most.isdecimal() and int(least) <= int(most)):
        raise Refused(400, "InvalidArgument", "x-goog-content-length-range")
    return int(least), int(most)


def _check_length(length: int, least: int, most: int) -> None:
    if length > most:
        raise Refused(400, "EntityTooLarge", "Your proposed upload is larger than the maximum object size specified.")
    if length < least:
        raise Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum object size specified.")


def _check_md5(text: str | None, data: bytes) -> None:
    if text is None:
        return
    try:
        wanted = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused(400, "InvalidDigest") from error
    if wanted != hashlib.md5(data, usedforsecurity=False).digest():
        raise Refused(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")


def _about(record: dict[str, Any]) -> dict[str, str]:
    return {
        "ETag": f'"{base64.b64decode(record["md5Hash"]).hex()}"',
        "x-goog-generation": record["generation"],
        "x-goog-hash": f"crc32c={record['crc32c']},md5={record['md5Hash']}",
        "Content-Type": record.get("contentType") or "application/octet-stream",
    }


def _range(text: str | None, size: int) -> tuple[int, int, int]:
    """Status, begin and end of what a GET with this ``Range`` shows."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text or "")
    if found is None or not (found[1] or found[2]):
        return 200, 0, size
    if not found[1]:
        begin, end = max(0, size - int(found[2])), size
    else:
        begin, end = int(found[1]), min(size, int(found[2] or size) + 1)
    return (416, 0, 0) if begin >= end else (206, begin, end)


def _unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _xml_error(refused: Refused) -> web.Response:
    told = f"<Error><Code>{refused.code}</Code><Message>{refused.words}</Message></Error>"
    body = f"<?xml version='1.0' encoding='UTF-8'?>{told}"
    return web.Response(status=refused.status, text=body, content_type="application/xml")


def _json_error(refused: Refused) -> web.Response:
    reason = {"message": refused.words, "domain": "global", "reason": refused.code}
    error = {"code": refused.status, "message": refused.words, "errors": [reason]}
    return web.json_response({"error": error}, status=refused.status)
