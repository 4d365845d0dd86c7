"""``hubs.json`` and the keys: what is meant by a channel's name, and what a damaged file does."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from entrepot.core.errors import Conflict, Corrupt, InvalidInput, NotFound
from entrepot.core.lock import SchemaLock
from entrepot.core.nkeys import KeyKind, encode_public
from entrepot.services.hubs import Hubs, JoinedChannel, JoinedHub, host_of, with_channels
from entrepot.services.keychain import Keychain


def hub(number: int, *channels: str, url: str | None = None, rights: str = "request:files") -> JoinedHub:
    """A hub with these channels."""
    public = encode_public(KeyKind.OPERATOR, bytes([number]) * 32)
    url = url or f"https://hub{number}.example.org"
    bare = JoinedHub(url, public, host_of(url), "me", encode_public(KeyKind.USER, bytes(32)))
    return with_channels(bare, [JoinedChannel(bare, name, SchemaLock(name), rights) for name in channels])


@pytest.fixture
def hubs(tmp_path: Path) -> Hubs:
    """No hub joined yet."""
    return Hubs(tmp_path / "hubs.json")


async def test_what_was_joined_is_read_again(hubs: Hubs, tmp_path: Path) -> None:
    """Hubs and channels come back as they were put, in order, from a file that is its owner's only."""
    one, two = hub(1, "demo", "other"), hub(2, "demo")
    await hubs.put(one)
    await hubs.put(two)
    found = await Hubs(tmp_path / "hubs.json").list()
    assert found == (one, two)
    assert [[(c.name, c.lock, c.scope) for c in each.channels] for each in found] == [
        [(c.name, c.lock, c.scope) for c in each.channels] for each in (one, two)
    ]
    assert stat.S_IMODE((await asyncio.to_thread((tmp_path / "hubs.json").stat)).st_mode) == 0o600


async def test_a_hub_that_was_set_up_anew_takes_the_place_of_the_old(hubs: Hubs) -> None:
    """Joining a hub again, or another hub at its address, replaces its entry."""
    await hubs.put(hub(1, "demo"))
    await hubs.put(hub(2, "demo"))
    await hubs.put(hub(1, "demo", "other"))
    assert [len(each.channels) for each in await hubs.list()] == [2, 1]
    await hubs.put(hub(3, "new", url="https://hub1.example.org"))
    assert [each.host for each in await hubs.list()] == ["hub1.example.org", "hub2.example.org"]
    assert (await hubs.channel("new")).hub.public == hub(3).public


async def test_nothing_joined(hubs: Hubs) -> None:
    """Without a hub every channel is unknown, with the way to join in the hint."""
    for name, host in ((None, None), ("demo", None), ("demo", "hub1.example.org")):
        with pytest.raises(NotFound) as caught:
            await hubs.channel(name, host)
        assert caught.value.kind == "not-joined"
        assert "join" in str(caught.value.hint)


async def test_a_channel_is_found_if_it_is_the_only_one(hubs: Hubs) -> None:
    """A name known once needs no hub; a name known twice lists both; no name needs one channel in all."""
    await hubs.put(hub(1, "demo", "other"))
    await hubs.put(hub(2, "demo"))
    assert (await hubs.channel("other")).hub.host == "hub1.example.org"
    assert (await hubs.channel("demo", "hub2.example.org")).hub.host == "hub2.example.org"
    assert (await hubs.channel(None, "hub2.example.org")).name == "demo"
    with pytest.raises(Conflict) as caught:
        await hubs.channel("demo")
    assert caught.value.kind == "ambiguous"
    assert "demo@hub1.example.org" in caught.value.message
    assert "demo@hub2.example.org" in caught.value.message
    with pytest.raises(Conflict):
        await hubs.channel(None)
    with pytest.raises(NotFound) as missing:
        await hubs.channel("absent")
    assert missing.value.kind == "no-such-channel"
    with pytest.raises(NotFound) as strange:
        await hubs.channel("demo", "strange.example.org")
    assert strange.value.kind == "not-joined"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"version": 1}',
        b'{"version": 1, "hubs": [{}]}',
        b'{"version": 1, "hubs": [], "x": 1}',
        b"[" * 5000,
        b'{"version": 1, "hubs": [{"url": "https://UPPER", "hub": "%s", "node": "%s", "name": "n", "channels": []}]}'
        % (b"O" * 56, b"U" * 56),
    ],
)
async def test_a_damaged_file_is_told_and_kept(hubs: Hubs, tmp_path: Path, text: bytes) -> None:
    """A file that is no list of hubs raises corrupt-store, and joining does not overwrite it."""
    path = tmp_path / "hubs.json"
    path.write_bytes(text)
    with pytest.raises(Corrupt) as caught:
        await hubs.list()
    assert caught.value.kind == "corrupt-store"
    with pytest.raises(Corrupt):
        await hubs.put(hub(1, "demo"))
    assert await asyncio.to_thread(path.read_bytes) == text


async def test_a_newer_file_is_not_touched(hubs: Hubs, tmp_path: Path) -> None:
    """A file of a later version asks for an upgrade."""
    (tmp_path / "hubs.json").write_bytes(b'{"version": 2, "hubs": "elsewhere"}')
    with pytest.raises(InvalidInput) as caught:
        await hubs.list()
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize(
    ("rights", "provides", "reads"),
    [
        ("request:files", False, True),
        ("provide:files", True, False),
        ("read", False, True),
        ("owner", True, True),
        ("keeper", False, False),
        ("request:files,provide:files", True, True),
    ],
)
def test_rights_in_words(rights: str, provides: bool, reads: bool) -> None:
    """The hub's words tell whether a node may provide and read."""
    channel = hub(1, "demo", rights=rights).channels[0]
    assert (channel.provides, channel.reads) == (provides, reads)


async def test_the_seed_is_made_once(tmp_path: Path) -> None:
    """Keychains that start at the same time agree on one seed, in a file of its owner's only, one key per hub."""
    path = tmp_path / "home" / "seed"
    public = hub(1).public
    keys = await asyncio.gather(*(Keychain(path).hub_key(public) for _ in range(8)))
    assert len({key.public for key in keys}) == 1
    assert (await Keychain(path).hub_key(public)).public == keys[0].public
    assert (await Keychain(path).hub_key(hub(2).public)).public != keys[0].public
    assert stat.S_IMODE((await asyncio.to_thread(path.stat)).st_mode) == 0o600
    seed = (await asyncio.to_thread(path.read_text)).strip()
    keychain = Keychain(path)
    await keychain.hub_key(public)
    assert seed not in repr(keychain)


@pytest.mark.parametrize("text", [b"", b"abc", b"00" * 31, b"00" * 33, b"zz" * 32, b"\xff" * 64])
async def test_a_damaged_seed_is_never_replaced(tmp_path: Path, text: bytes) -> None:
    """A seed file that holds no seed raises corrupt-store and stays as it is: it may be restored."""
    path = tmp_path / "seed"
    path.write_bytes(text)
    with pytest.raises(Corrupt):
        await Keychain(path).hub_key(hub(1).public)
    assert await asyncio.to_thread(path.read_bytes) == text
