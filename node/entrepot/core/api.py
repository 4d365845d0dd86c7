"""The hub's HTTP API as values: what nodes send and what they are answered, in JSON.

Requests are decoded strictly: an unknown field is refused. Answers may gain fields, so a node ignores those
it does not know; what it does know must have its type. Ids are lower-case hexadecimal text, times unix
seconds by the hub's clock, sizes bytes.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

#: The most bytes of a request's body.
MAX_REQUEST = 65536
#: The most bytes of an answer that a node reads.
MAX_ANSWER = 4 << 20

Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]+$", max_length=128)]
InviteId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
Proof = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
LockHex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
OpeningHex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{80}$")]
PublicKey = Annotated[str, msgspec.Meta(pattern="^[A-Z2-7]{56}$")]
ChannelName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9]{1,32}$")]
NodeName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
_RIGHT = "(request|provide|(request|provide):(files|feeds|results)|read|owner|keeper|worker)"
#: Rights as words with commas between them, as they are asked for. The hub checks them itself, with a better error.
RightsText = Annotated[
    str,
    msgspec.Meta(
        max_length=2000,
        extra_json_schema={"pattern": f"^ *{_RIGHT} *(, *{_RIGHT} *)*$", "examples": ["request,provide"]},
    ),
]
#: How many nodes may join by an invite; checked like rights.
Uses = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": 100_000})]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what a node sends."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what a hub answers."""


class JoinRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/join``: I was invited. ``mac`` proves that the invite's secret is known (docs/protocol.md
    has its bytes); ``name`` is what others will see me as."""

    invite: InviteId
    node: PublicKey
    mac: Proof
    name: NodeName


class Joined(Answer, frozen=True, kw_only=True):
    """You are in (again): this channel, with these rights, under this name."""

    hub: PublicKey
    channel: ChannelName
    rights: Text
    name: NodeName


class SessionRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/session`` (signed): what do I need to work?"""


class ChannelInfo(Answer, frozen=True, kw_only=True):
    """A channel as one member sees it. ``lock`` is the schema lock's canonical document, ``lock_id`` its
    id."""

    name: ChannelName
    lock: Text
    lock_id: LockHex
    rights: Text
    quota: Size
    public_read: bool


class SessionInfo(Answer, frozen=True, kw_only=True):
    """All that a node needs: its NATS login (``jwt`` until ``jwt_expires``), servers, inbox prefix, channels.

    ``instance`` names the running hub process that answered, ``time`` is its clock.
    """

    hub: PublicKey
    node: PublicKey
    name: NodeName
    jwt: Annotated[str, msgspec.Meta(max_length=65536)]
    jwt_expires: float
    nats: tuple[Text, ...]
    inbox: Text
    instance: Text
    channels: tuple[ChannelInfo, ...]
    time: float

    def __repr__(self) -> str:
        names = ", ".join(channel.name for channel in self.channels)
        return f"SessionInfo(hub={self.hub}, node={self.node}, channels=[{names}], jwt=***)"


class HubInfo(Answer, frozen=True, kw_only=True):
    """``GET /v1/hub``: which hub this is. ``proof``: its Ed25519 signature, 128 hex digits, over ``entrepot.hub``, a
    zero byte, the challenge's 16 bytes and the address as text, if it was challenged at one of its own addresses."""

    hub: PublicKey
    version: Text
    time: float
    proof: Annotated[str, msgspec.Meta(pattern="^(?:[0-9a-f]{128})?$")] = ""


class HolderInfo(Answer, frozen=True, kw_only=True):
    """A node that said it holds a stream."""

    name: NodeName
    online: bool
    last_seen: float


class StreamInfo(Answer, frozen=True, kw_only=True):
    """``GET /v1/channels/{channel}/streams/{id}`` (signed): what the hub knows of a stream. ``objects`` and
    ``bytes`` are what of it lies in the bucket now; ``wanted_by`` how many nodes wait for it."""

    opening: OpeningHex | None
    holders: tuple[HolderInfo, ...]
    objects: Size
    bytes: Size
    wanted_by: Size


class Fault(Answer, frozen=True, kw_only=True):
    """An error: programs compare ``kind``, people read ``message`` and ``hint``."""

    kind: Annotated[str, msgspec.Meta(max_length=200)]
    message: Text
    hint: Text | None = None
    data: dict[str, str | int | float | bool | None] = {}


class StreamEvent(Answer, frozen=True, kw_only=True):
    """Like events in the life of a stream, between ``at`` and ``until``: ``kind`` is a word of the hub's journal
    (``docs/cli.md`` lists them), ``node`` who did it or for whom it was done, ``first`` to ``last`` the objects,
    ``count`` how many events, ``bytes`` and ``seconds`` what they come to, ``detail`` why."""

    kind: Text
    node: Text | None
    transfer: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")] | None
    at: float
    until: float
    first: Size | None
    last: Size | None
    count: Size
    bytes: Size
    seconds: float
    detail: dict[Text, Text]


class Timeline(Answer, frozen=True, kw_only=True):
    """``GET /v1/channels/{channel}/streams/{id}/timeline`` (signed): what happened to a stream, the oldest first, and
    how it stands. ``reason``: why whoever waits for it waits. ``cost`` in ``currency``: what the events come to by the
    channel's price list."""

    info: StreamInfo
    events: tuple[StreamEvent, ...]
    reason: Fault | None
    cost: Text
    currency: Text
    time: float


class ReadTrial(Answer, frozen=True, kw_only=True):
    """``GET /v1/channels/{channel}/trial`` (signed): a signed GET of the small object that marks the channel's bucket
    as the hub's, by which a member finds out whether it reaches the bucket. It can be used for ``expires`` seconds."""

    url: Annotated[str, msgspec.Meta(max_length=4096)]
    headers: dict[Text, Text]
    expires: float

    def __repr__(self) -> str:
        return f"ReadTrial(url=***, expires={self.expires})"


class InviteRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/channels/{channel}/invites`` (signed, owners): an invite for ``uses`` nodes, good for
    ``life`` seconds."""

    uses: Uses = 1
    life: Annotated[float, msgspec.Meta(gt=0, le=366 * 86_400)] = 7 * 86_400
    rights: RightsText = "request,provide"


class GrantRequest(Body, frozen=True, kw_only=True):
    """``PUT /v1/channels/{channel}/members/{node}`` (signed, owners): exactly these rights."""

    rights: RightsText


class ChannelView(Answer, frozen=True, kw_only=True):
    """A channel. ``held`` of the ``charged`` bytes are held back after a rebuilding, until ``held_until``."""

    name: Text
    bucket: Text
    quota: int
    charged: int
    lock: LockHex
    miniblock: int
    object: int
    public_read: bool
    created_at: float
    binds: dict[str, bool]
    held: int = 0
    held_until: float | None = None
    codec: Text = "none"


class MemberView(Answer, frozen=True, kw_only=True):
    """A node in a channel."""

    channel: Text
    node: Text
    name: Text
    rights: Text
    active: bool
    granted_at: float
    revoked_at: float | None


class InviteView(Answer, frozen=True, kw_only=True):
    """An invite without its secret."""

    id: Text
    channel: Text
    rights: Text
    uses: int
    used: int
    expires: float
    revoked_at: float | None


class NewInvite(Answer, frozen=True, kw_only=True):
    """An invite as it is made. ``url`` holds the secret and is shown this once."""

    invite: InviteView
    url: str

    def __repr__(self) -> str:
        return f"NewInvite({self.invite!r}, url=***)"


class KeyView(Answer, frozen=True, kw_only=True):
    """A key of a bucket, without the key: ``label`` is the part that is no secret (an access key's id, a service
    account's address). ``set_by``: a node's public key, a word for the admin, "" for unknown. ``safe_at``: until then a
    retired one has to stay valid at the provider."""

    label: Text
    set_at: float
    set_by: Text
    used_at: float | None = None
    retired_at: float | None = None
    safe_at: float | None = None


class LimitView(Answer, frozen=True, kw_only=True):
    """What a channel (``node`` ""), each node ("*") or one node may use at most, None for no limit, and what is used:
    bytes ``up`` and ``down`` today (UTC), objects ``held``, as far as that is known. ``budget``: money per month."""

    node: Text
    name: Text
    day_up: int | None = None
    day_down: int | None = None
    objects: int | None = None
    stream: int | None = None
    budget: Text | None = None
    up: int | None = None
    down: int | None = None
    held: int | None = None


class ChannelDetail(Answer, frozen=True, kw_only=True):
    """A channel with its members and invites. ``key``: what its bucket is opened with, where it needs keys and they
    were noted. ``limits``: where the admin asks."""

    channel: ChannelView
    members: list[MemberView]
    invites: list[InviteView]
    key: KeyView | None = None
    limits: list[LimitView] = []


class FaultAnswer(Answer, frozen=True, kw_only=True):
    """Every answer with a status of 400 or more: ``{"error": {kind, message, hint, data}}``."""

    error: Fault
