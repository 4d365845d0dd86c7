"""From one machine to another through the bucket: whole files, what is local, what resumes, what fails and why."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from tests.integration.node.conftest import Site
from tests.servers.grid import until

from entrepot.core.errors import Conflict, Denied, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot.core.identifiers import StreamId
from entrepot.core.uri import StreamUri
from entrepot.services.node import Node
from entrepot.services.progress import Progress

UNKNOWN = StreamId(bytes([0xFF]) + bytes(31))


async def content_of(path: Path) -> bytes:
    """A file's bytes, read in a thread."""
    return await asyncio.to_thread(path.read_bytes)


async def test_a_file_passes_from_one_machine_to_another(
    site: Site, original: Path, data: bytes, tmp_path: Path
) -> None:
    """What one node added and offers, another gets by its URI, verified, and each object is uploaded once."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    added = await giver.add(original)
    assert added.served
    seen: list[Progress] = []
    got = await taker.get(str(added.uri), tmp_path / "copy.bin", progress=seen.append)
    assert await content_of(got.path) == data
    assert (got.length, got.fetched_bytes, got.stream) == (len(data), len(data), added.stream)
    assert len(site.grid.objects()) == 9
    assert (seen[-1].kind, seen[-1].done, seen[-1].total) == ("get", len(data), len(data))


@pytest.mark.parametrize("length", [0, 1, 16384, 65536, 65537])
async def test_files_of_every_shape_pass(site: Site, tmp_path: Path, length: int) -> None:
    """The empty file, one byte, and the borders of miniblocks and objects come through."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    path = tmp_path / "shape"
    path.write_bytes(secrets.token_bytes(length))
    added = await giver.add(path)
    got = await taker.get(added.uri, tmp_path / "copy")
    assert await content_of(got.path) == await content_of(path)


async def test_what_is_here_needs_no_hub(site: Site, original: Path, data: bytes, tmp_path: Path) -> None:
    """A stream that is complete here is exported, read and described while the hub is gone."""
    giver = await site.node("giver")
    added = await giver.add(original)
    await site.grid.stop()
    got = await giver.get(added.uri, tmp_path / "copy.bin")
    assert (await content_of(got.path), got.fetched_bytes) == (data, 0)
    async with await giver.open(added.uri) as file:
        assert await file.read(100, 50) == data[100:150]
    info = await giver.info(added.uri)
    assert (info.held, info.missing, info.length) == (True, 0, len(data))
    assert info.hub_reason is not None


async def test_adding_works_without_the_hub(site: Site, original: Path) -> None:
    """A file is added to the channel as the hub described it last while the hub is gone."""
    giver = await site.node("giver")
    await site.grid.stop()
    added = await giver.add(original)
    assert (added.uri.channel, added.uri.hub, added.uri.name) == (
        "demo",
        f"127.0.0.1:{site.grid.port}",
        "original.bin",
    )


async def test_an_output_is_not_overwritten_unless_told(
    site: Site, original: Path, data: bytes, tmp_path: Path
) -> None:
    """A file in the way stops a get before anything is asked for; force replaces it."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    added = await giver.add(original)
    there = tmp_path / "there"
    there.write_bytes(b"mine")
    with pytest.raises(Conflict) as caught:
        await taker.get(added.uri, there)
    assert caught.value.kind == "exists"
    assert await content_of(there) == b"mine"
    assert site.grid.objects() == {}
    await taker.get(added.uri, there, force=True)
    assert await content_of(there) == data


async def test_a_get_into_no_folder_asks_for_nothing(site: Site, original: Path, tmp_path: Path) -> None:
    """An output whose folder is missing is told before anything moves."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    added = await giver.add(original)
    with pytest.raises(NotFound) as caught:
        await taker.get(added.uri, tmp_path / "no" / "folder")
    assert caught.value.kind == "no-such-file"
    in_the_way = tmp_path / "taken" / "original.bin"
    await asyncio.to_thread(in_the_way.mkdir, parents=True)
    with pytest.raises(InvalidInput):
        await taker.get(added.uri, in_the_way.parent)
    assert site.grid.objects() == {}


async def test_an_output_may_be_a_folder(site: Site, original: Path, data: bytes, tmp_path: Path) -> None:
    """As with cp, the file comes to lie in the folder, under its own name."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    added = await giver.add(original)
    folder = tmp_path / "folder"
    await asyncio.to_thread(folder.mkdir)
    got = await taker.get(added.uri, folder)
    assert got.path == folder / "original.bin"
    assert await content_of(got.path) == data


async def test_a_finished_get_may_be_repeated(site: Site, original: Path, data: bytes, tmp_path: Path) -> None:
    """Where the output is the stream already, nothing is done and nobody asked; a changed one is in the way."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    added = await giver.add(original)
    out = tmp_path / "out"
    await taker.get(added.uri, out)
    await site.grid.stop()
    again = await taker.get(added.uri, out)
    assert (again.path, again.how, again.length, again.fetched_bytes) == (out, "there", len(data), 0)
    await asyncio.to_thread(out.write_bytes, data[::-1])
    with pytest.raises(Conflict) as caught:
        await taker.get(added.uri, out)
    assert caught.value.kind == "exists"
    assert await content_of(out) == data[::-1]


async def test_the_bucket_serves_when_the_holder_is_gone(
    site: Site, original: Path, data: bytes, tmp_path: Path
) -> None:
    """A second reader gets everything from the bucket while no holder is online, and the result says so."""
    giver, first, second = await site.node("giver"), await site.node("first"), await site.node("second")
    await site.up("giver")
    added = await giver.add(original)
    await first.get(added.uri, tmp_path / "one")
    await site.down("giver")
    got = await second.get(added.uri, tmp_path / "two")
    assert await content_of(got.path) == data
    assert got.from_bucket_bytes == got.fetched_bytes == len(data)


async def test_nobody_has_it(site: Site, tmp_path: Path) -> None:
    """A stream that nobody offers fails within the deadline with that reason, and nothing is left."""
    taker = await site.node("taker")
    with pytest.raises(NotFound) as caught:
        await taker.get(StreamUri("demo", None, UNKNOWN), tmp_path / "none", deadline=2.5)
    assert caught.value.kind == "no-holder"
    assert not (tmp_path / "none").exists()


async def test_the_hub_is_gone(site: Site, tmp_path: Path) -> None:
    """A get from a hub that cannot be reached says so at once."""
    taker = await site.node("taker")
    await site.grid.stop()
    with pytest.raises(RetryLater) as caught:
        await taker.get(StreamUri("demo", None, UNKNOWN), tmp_path / "none")
    assert caught.value.kind == "hub-unreachable"


async def test_a_hub_that_was_not_joined_is_never_dialled(site: Site, tmp_path: Path) -> None:
    """A URI of a strange hub is refused with the way to join it."""
    taker = await site.node("taker")
    strange = StreamUri("demo", "hub.example.org", UNKNOWN)
    with pytest.raises(NotFound) as caught:
        await taker.get(strange, tmp_path / "none")
    assert caught.value.kind == "not-joined"
    assert caught.value.hint is not None
    with pytest.raises(Denied) as refused:
        await taker.get(StreamUri("strange", None, UNKNOWN), tmp_path / "none")
    assert refused.value.kind == "no-right"
    assert "member of strange" in refused.value.message


async def test_what_was_revoked_and_granted_again_is_there_again(site: Site, original: Path, tmp_path: Path) -> None:
    """A node without a daemon is told that it is no member while it is none, and asks the hub before it says so."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    added = await giver.add(original)
    public = (await taker.whoami())[0].node_public
    await taker.aclose()
    await site.grid.admin("channel.revoke", name="demo", node=public)
    for _ in range(2):  # from what it heard last, and from an empty list
        async with Node(site.settings("taker")) as again:
            with pytest.raises(Denied) as caught:
                await again.get(added.uri, tmp_path / "copy")
            assert caught.value.kind == "no-right"
            assert "no longer" in caught.value.message
            with pytest.raises(Denied):
                await again.add(original)
            assert not (await again.whoami())[0].channels
    async with Node(site.settings("taker")) as again:
        await site.grid.admin("channel.grant", name="demo", node=public, rights="request,provide")
        got = await again.get(added.uri, tmp_path / "copy")
        assert got.length == added.length
        assert [channel.name for channel in (await again.whoami())[0].channels] == ["demo"]
        assert (await again.add(original)).stream == added.stream


async def test_an_unknown_channel_of_a_hub_that_is_gone(site: Site, original: Path, tmp_path: Path) -> None:
    """Whether this node is in a channel that it never heard of is not decided without the hub; what is known of the
    stream here is told nevertheless."""
    taker = await site.node("taker")
    added = await taker.add(original)
    await site.grid.stop()
    with pytest.raises(RetryLater) as caught:
        await taker.get(StreamUri("strange", None, UNKNOWN), tmp_path / "none")
    assert caught.value.kind == "hub-unreachable"
    told = await taker.info(StreamUri("strange", None, added.stream))
    assert told.held
    assert "cannot be reached" in str(told.hub_reason)


async def test_a_get_that_was_stopped_goes_on_where_it_was(
    site: Site, original: Path, data: bytes, tmp_path: Path
) -> None:
    """Objects that were verified before a get was cancelled are not fetched again by the next process."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    added = await giver.add(original)
    async with await taker.open(added.uri) as file:
        assert await file.read(70_000, 200_000) == data[70_000:270_000]
    await taker.aclose()
    again = await site.node("taker")
    got = await again.get(added.uri, tmp_path / "copy")
    assert await content_of(got.path) == data
    assert got.fetched_bytes < len(data) - 190_000


async def test_a_cancelled_get_stops_wanting(site: Site, tmp_path: Path) -> None:
    """The hub forgets the want of a get that is cancelled."""
    taker = await site.node("taker")
    getting = asyncio.create_task(taker.get(StreamUri("demo", None, UNKNOWN), tmp_path / "none"))

    async def wanted() -> int:
        try:
            return (await taker.info(StreamUri("demo", None, UNKNOWN))).wanted_by or 0
        except NotFound:
            return 0

    async with asyncio.timeout(20):
        while await wanted() != 1:
            await asyncio.sleep(0.02)
        getting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await getting
        while await wanted() != 0:
            await asyncio.sleep(0.02)


async def test_waiting_for_a_holder_to_come(site: Site, original: Path, data: bytes, tmp_path: Path) -> None:
    """A get that waits is served as soon as a machine that has the file comes online."""
    giver, taker = await site.node("giver"), await site.node("taker")
    added = await giver.add(original)
    getting = asyncio.create_task(taker.get(added.uri, tmp_path / "copy", wait=60.0))
    await asyncio.sleep(0.5)
    assert not getting.done()
    await site.up("giver")
    got = await getting
    assert await content_of(got.path) == data


async def test_gets_of_one_stream_at_once(site: Site, original: Path, data: bytes, tmp_path: Path) -> None:
    """Two gets of one stream in one node both give the file, and the bytes come once."""
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    added = await giver.add(original)
    one, two = await asyncio.gather(taker.get(added.uri, tmp_path / "a"), taker.get(added.uri, tmp_path / "b"))
    assert await content_of(one.path) == await content_of(two.path) == data
    assert one.fetched_bytes + two.fetched_bytes == len(data)


async def test_a_file_larger_than_the_quota_flows_through(site: Site, tmp_path: Path) -> None:
    """A stream of forty objects comes through a channel that has room for six."""
    await site.grid.channel("small", quota=6 * 66_000)
    giver, taker = await site.node("giver", "small"), await site.node("taker", "small")
    await site.up("giver")
    path = tmp_path / "large"
    path.write_bytes(secrets.token_bytes(40 * 65536))
    added = await giver.add(path, channel="small")
    got = await taker.get(added.uri, tmp_path / "copy", deadline=20)
    assert await content_of(got.path) == await content_of(path)
    assert sum(site.grid.objects("small").values()) <= 6 * 66_000


async def test_aliases_name_what_is_here_only(site: Site, original: Path, data: bytes, tmp_path: Path) -> None:
    """A SHA-256 names a file that was added here; elsewhere it is not asked for."""
    giver, taker = await site.node("giver"), await site.node("taker")
    added = await giver.add(original)
    got = await giver.get(f"sha256:{added.sha256}", tmp_path / "copy")
    assert await content_of(got.path) == data
    with pytest.raises(NotFound) as caught:
        await taker.get(f"sha256:{added.sha256}", tmp_path / "other")
    assert caught.value.kind == "no-such-stream"


async def test_a_bare_id_needs_one_channel(site: Site, original: Path, data: bytes, tmp_path: Path) -> None:
    """A stream id alone is looked for in the only channel; with two it has to be said which."""
    await site.grid.channel("other")
    giver, taker = await site.node("giver"), await site.node("taker")
    await site.up("giver")
    added = await giver.add(original)
    got = await taker.get(added.stream.hex, tmp_path / "copy")
    assert await content_of(got.path) == data
    both = await site.node("both", "demo", "other")
    with pytest.raises(Conflict) as caught:
        await both.get(added.stream.hex, tmp_path / "second")
    assert caught.value.kind == "ambiguous"
    assert "demo@" in caught.value.message
    assert "other@" in caught.value.message
    await both.get(added.stream.hex, tmp_path / "second", channel="demo")


async def test_rights_are_told_before_anything_is_tried(site: Site, original: Path, tmp_path: Path) -> None:
    """Who may only provide cannot get, who may only request cannot add: each is told which right is missing."""
    provider = await site.node("provider", rights="provide")
    reader = await site.node("reader", rights="request")
    with pytest.raises(Denied) as caught:
        await provider.get(StreamUri("demo", None, UNKNOWN), tmp_path / "none")
    assert caught.value.kind == "no-right"
    with pytest.raises(Denied) as caught:
        await reader.add(original)
    assert caught.value.kind == "no-right"


@pytest.mark.parametrize(
    "text", ["", "http://example.org/x", "entrepot://demo", "ff00", "sha256:12", "entrepot://DEMO/" + UNKNOWN.hex]
)
async def test_what_names_nothing_is_refused(site: Site, tmp_path: Path, text: str) -> None:
    """Words that are no URI, id or alias are invalid input, whatever they look like."""
    taker = await site.node("taker")
    with pytest.raises(InvalidInput):
        await taker.get(text, tmp_path / "none")


async def test_what_was_fetched_is_offered_by_a_running_daemon(
    site: Site, original: Path, data: bytes, tmp_path: Path
) -> None:
    """A get beside a running daemon of the same store makes that daemon a holder: it serves when the giver is gone and
    the bucket is empty."""
    giver, middle, last = await site.node("giver"), await site.node("middle"), await site.node("last")
    await site.up("giver")
    await site.up("middle")
    added = await giver.add(original)
    await middle.get(added.uri, tmp_path / "one")
    await until_holders(last, added.uri, 2)
    await site.down("giver")
    bucket = site.grid.folder / "bucket-demo"
    for key in site.grid.objects():
        (bucket / key).unlink()
    got = await last.get(added.uri, tmp_path / "two", deadline=30)
    assert await content_of(got.path) == data


async def until_holders(node: object, uri: StreamUri, count: int) -> None:
    """Return when the hub knows so many holders."""
    async with asyncio.timeout(20):
        while len((await node.info(uri)).holders) < count:  # type: ignore[attr-defined]
            await asyncio.sleep(0.02)


async def test_removing_may_cost_the_last_copy(site: Site, original: Path, tmp_path: Path) -> None:
    """A stored stream whose only other home is nobody is not removed without force; linked files never go."""
    giver = await site.node("giver")
    added = await giver.add(original, copy=True)
    with pytest.raises(Conflict) as caught:
        await giver.remove(added.uri)
    assert caught.value.kind == "last-copy"
    taker = await site.node("taker")
    await site.up("giver")
    await taker.get(added.uri, tmp_path / "copy")
    assert await giver.remove(added.uri)
    with pytest.raises(NotFound):
        await giver.remove(added.uri)


async def test_errors_of_the_store_come_out_as_they_are(site: Site, tmp_path: Path) -> None:
    """A missing file, a folder: the error says which and is one of ours."""
    giver = await site.node("giver")
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(EntrepotError):
            await giver.add(path)


async def test_verify_finds_what_changed(site: Site, original: Path, data: bytes) -> None:
    """Hashing again tells a linked file whose bytes were altered."""
    giver = await site.node("giver")
    added = await giver.add(original)
    (whole,) = await giver.verify()
    assert not whole.bad
    original.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (spoilt,) = await giver.verify(added.uri)
    assert spoilt.bad or spoilt.missing


async def test_status_without_and_with_a_daemon(site: Site, original: Path) -> None:
    """The status counts what is here and shows the daemon only while one runs."""
    giver = await site.node("giver")
    await giver.add(original)
    before = await giver.status()
    assert before.daemon is None
    assert before.size.streams == 1
    await site.up("giver")
    during = await giver.status()
    assert during.daemon is not None
    assert [hub.state for hub in during.daemon.hubs] == ["up"]
    identity = (await giver.whoami())[0]
    assert identity.node_public == during.daemon.hubs[0].node
    assert identity.name == "giver"


async def test_a_hub_that_is_gone_is_told_while_a_get_waits(site: Site, original: Path, tmp_path: Path) -> None:
    """When the connection to the hub ends, whoever watches a get hears that it waits for the hub."""
    giver, taker = await site.node("giver"), await site.node("taker")
    added = await giver.add(original)
    notes: list[str | None] = []
    getting = asyncio.create_task(
        taker.get(added.uri, tmp_path / "copy.bin", deadline=60, progress=lambda told: notes.append(told.note))
    )
    try:
        await until(lambda: notes)
        await site.grid.stop()
        await until(lambda: "the hub cannot be reached: waiting for it" in notes)
    finally:
        getting.cancel()
        await asyncio.wait([getting])
