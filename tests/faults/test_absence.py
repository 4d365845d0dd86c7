"""Nobody who has it is there: reasons in time, and wants that outlive who asked."""

from __future__ import annotations

import filecmp
import re
import time

from tests.servers.nodes import MIB, Site, elapsed
from tests.servers.relay import noted, until


def test_without_a_holder_a_get_says_who_had_it_last(site: Site) -> None:
    """The only holder is gone: the get ends by its timeout, exit code 3, and names who had it last and when."""
    holder, reader = site.machine("holder"), site.machine("reader")
    holder.up()
    (uri,) = holder.add(holder.file("original.bin", 2 * MIB))
    until(lambda: reader.holders(uri), what="the hub's knowledge of the holder")
    before = time.time()
    holder.down()
    began = time.monotonic()
    ended = reader.run("get", uri, "-o", "copy.bin", "--timeout", "3s", "--json")
    noted("no holder, --timeout 3s: the command took", elapsed(began))
    assert ended.code == 3
    error = ended.error
    assert error["kind"] == "no-holder"
    assert "holder had it last" in error["message"]
    assert error["data"]["last_holder"] == "holder"
    assert before - 60 < error["data"]["last_seen"] < time.time()
    assert "entrepot up" in error["hint"]
    assert not (reader.folder / "copy.bin").exists()
    told = reader.run("get", uri, "-o", "copy.bin", "--timeout", "3s")
    assert told.code == 3
    print(told.err)
    assert re.search(r"holder had it last, last seen \d+\w+ ago", told.err)


def test_a_want_that_waits_is_served_without_its_asker(site: Site) -> None:
    """``get --wait`` is killed; later a holder comes: it uploads with nobody asking any more, and when it is gone again
    the next get is served from the bucket."""
    holder, reader = site.machine("holder"), site.machine("reader")
    original = holder.file("original.bin", 2 * MIB)
    holder.up()
    (uri,) = holder.add(original)
    until(lambda: reader.holders(uri), what="the hub's knowledge of the holder")
    holder.down()
    get = reader.start("get", uri, "-o", "copy.bin", "--wait", "10m", "--json")
    until(lambda: holder.wanted(uri), what="the want at the hub")
    get.kill()
    began = time.monotonic()
    holder.up()
    until(lambda: len(site.hub.objects()) == 8, what="all objects in the bucket")
    noted("holder's daemon started, until all 8 objects that nobody asks for any more are there", elapsed(began))
    assert not site.relay.gets()
    holder.down()
    got = reader.run("get", uri, "-o", "copy.bin", "--json").fine().document
    assert got["from_bucket_bytes"] == got["fetched_bytes"] == 2 * MIB
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)


def test_a_want_for_a_stream_that_nobody_knows_is_kept_as_well(site: Site) -> None:
    """``get --wait`` for a stream of which the hub knows nothing at all, killed: when somebody who has it comes,
    it begins to be uploaded."""
    holder, reader = site.machine("holder"), site.machine("reader")
    (uri,) = holder.add(holder.file("original.bin", 2 * MIB))
    get = reader.start("get", uri, "-o", "copy.bin", "--wait", "10m", "--json")
    until(lambda: "ever said it had" in get.told, what="the want at the hub")
    get.kill()
    holder.up()
    until(lambda: len(site.hub.objects()) >= 1, what="an object in the bucket")
