"""What the registry promises about invites: they let in whoever proves the secret, as often as they say."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from tests.contract.registry.conftest import ANNA, BERT, HUB

from entrepot.core.errors import Denied, EntrepotError, InvalidInput, NotFound
from entrepot.core.invite import join_proof, proof_key
from entrepot_hub.adapters import tables as t
from entrepot_hub.adapters.database import Database
from entrepot_hub.adapters.registry import Registry
from entrepot_hub.core.members import Invite, Member, Rights
from entrepot_hub.core.sealing import MasterKey

SECRET = b"sixteen secrets!"


async def make(
    registry: Registry, rights: str = "request", uses: int = 1, expires: float = 100.0, now: float = 10.0
) -> Invite:
    return await registry.create_invite(
        "demo", Rights.parse(rights), uses=uses, expires=expires, secret=SECRET, now=now, actor="admin"
    )


async def join(
    registry: Registry, invite: Invite, node: str = BERT, now: float = 20.0, secret: bytes = SECRET, hub: str = HUB
) -> Member:
    mac = join_proof(secret, node, hub)
    return await registry.redeem(invite.id, node=node, mac=mac, hub_public=HUB, name="bert", now=now)


async def bad(joining: object) -> None:
    with pytest.raises(Denied) as caught:
        await joining  # type: ignore[misc]
    assert (caught.value.kind, caught.value.message) == ("bad-invite", "this invite does not let you in")


async def test_an_invited_node_becomes_a_member(registry: Registry) -> None:
    """Whoever proves the secret gets the invite's rights, and the log says so."""
    invite = await make(registry)
    assert (len(invite.id), invite.used) == (32, 0)
    member = await join(registry, invite)
    assert (member.node.public, member.node.name, str(member.rights), member.active) == (
        BERT,
        "bert",
        "request:files",
        True,
    )
    assert [i.used for i in await registry.invites("demo")] == [1]
    entry = (await registry.audit_log())[-1]
    assert (entry.actor, entry.action, entry.subject) == (BERT, "member.join", "demo")


async def test_the_same_key_may_repeat_it(registry: Registry) -> None:
    """An answer that was lost costs no second use; another key finds it used up."""
    invite = await make(registry)
    first = await join(registry, invite)
    assert await join(registry, invite, now=30.0) == first
    await bad(join(registry, invite, node=ANNA))
    assert [i.used for i in await registry.invites("demo")] == [1]


async def test_an_invite_for_three_lets_three_in(registry: Registry) -> None:
    """Many at once: as many get in as the invite says."""
    invite = await make(registry, uses=3)
    joins = (join(registry, invite, node=f"U{number:055}") for number in range(10))
    results = await asyncio.gather(*joins, return_exceptions=True)
    assert sum(isinstance(result, Member) for result in results) == 3
    assert {result.kind for result in results if isinstance(result, EntrepotError)} == {"bad-invite"}
    assert [i.used for i in await registry.invites("demo")] == [3]


async def test_every_failure_looks_the_same(registry: Registry) -> None:
    """Unknown, wrong secret, another hub's proof, expired, withdrawn, suspended: one answer, and nobody joined."""
    invite = await make(registry, uses=9)
    await bad(join(registry, Invite("0" * 32, "demo", invite.rights, 1, 0, 0.0, 0.0)))
    await bad(join(registry, invite, secret=b"sixteen mistakes"))
    await bad(join(registry, invite, hub="AOTHER"))
    await bad(join(registry, invite, now=100.0))
    await registry.suspend(ANNA, now=11.0, actor="admin")
    await bad(join(registry, invite, node=ANNA))
    await registry.revoke_invite("demo", invite.id, now=12.0, actor="admin")
    await bad(join(registry, invite))
    assert await registry.members("demo") == []
    assert [node.public for node in await registry.nodes()] == [ANNA]


async def test_an_invite_adds_rights_and_takes_none(registry: Registry) -> None:
    """A member who redeems another invite keeps what it had."""
    await join(registry, await make(registry, "request"))
    member = await join(registry, await make(registry, "provide"))
    assert str(member.rights) == "request:files,provide:files"


async def test_a_revoked_member_needs_a_newer_invite(registry: Registry) -> None:
    """Neither repeating its invite nor another old one brings it back; one made afterwards does."""
    used, unused = await make(registry, "request"), await make(registry, "request")
    await join(registry, used)
    await registry.revoke("demo", BERT, now=30.0, actor="admin")
    await bad(join(registry, used, now=31.0))
    await bad(join(registry, unused, now=31.0))
    member = await join(registry, await make(registry, "read", now=32.0), now=33.0)
    assert (str(member.rights), member.active) == ("read", True)


async def test_the_database_does_not_hold_the_secret(registry: Registry, database: Database) -> None:
    """Neither the secret nor the key that proves it lies there in clear."""
    await make(registry)
    proof = await database.run(lambda connection: connection.execute(sa.select(t.invites.c.proof)).scalar_one())
    assert SECRET not in bytes(proof)
    assert proof_key(SECRET) not in bytes(proof)


async def test_another_master_key_lets_nobody_in(registry: Registry, database: Database) -> None:
    """A hub that cannot open the proof says so as a fault of its key, not as a bad invite."""
    invite = await make(registry)
    with pytest.raises(Denied) as caught:
        await join(Registry(database, MasterKey(b"x" * 32)), invite)
    assert "master key" in caught.value.message


async def test_nonsense_is_refused(registry: Registry) -> None:
    """An invite has a use, an end to come, rights and a channel."""
    for words in ({"uses": 0}, {"expires": 10.0}, {"uses": 10**9}):
        with pytest.raises(InvalidInput):
            await make(registry, **words)
    with pytest.raises(NotFound):
        await registry.revoke_invite("demo", "0" * 32, now=1.0, actor="admin")
