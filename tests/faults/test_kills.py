"""Processes that are killed in the middle of a transfer: providers, requesters, the hub, its message bus."""

from __future__ import annotations

import filecmp
import signal
import time
from collections.abc import Callable

from tests.servers.nodes import KIB, MIB, Site, elapsed
from tests.servers.relay import noted, until

OBJECT = 256 * KIB


def test_a_killed_provider_is_replaced_by_another_holder(site: Site) -> None:
    """The daemon that uploads is killed half-way: another holder goes on, and the file arrives whole."""
    first, second, reader = (site.machine(name) for name in ("first", "second", "reader"))
    original = first.file("original.bin", 6 * MIB)
    (uri,) = first.add(original)
    second.add(original)
    first.up()
    site.relay.hold("PUT", 2 * MIB)
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    site.relay.wait_held("PUT")
    second.up()
    before = len(site.relay.puts())
    first.kill()
    killed = time.monotonic()
    site.relay.release()
    until(lambda: len(site.relay.puts()) > before, what="the next holder's upload")
    noted("provider killed, until the next holder uploads", site.relay.puts()[before].began - killed)
    get.wait().fine()
    noted("provider killed, until the file is there", elapsed(killed))
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)


def test_a_stopped_provider_loses_its_lease(site: Site) -> None:
    """The daemon that uploads stands still: its lease lapses, another holder goes on, and when it is continued its late
    uploads change nothing."""
    first, second, reader = (site.machine(name) for name in ("first", "second", "reader"))
    original = first.file("original.bin", 6 * MIB)
    (uri,) = first.add(original)
    second.add(original)
    first.up()
    site.relay.hold("PUT", 2 * MIB)
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    site.relay.wait_held("PUT")
    second.up()
    assert first.daemon is not None
    first.daemon.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    before = len(site.relay.puts())
    site.relay.release()
    until(lambda: len(site.relay.puts()) > before, what="the next holder's upload")
    noted("provider stopped (lease of 10 s), until the next holder uploads", site.relay.puts()[before].began - stopped)
    get.wait().fine()
    noted("provider stopped (lease of 10 s), until the file is there", elapsed(stopped))
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)
    first.daemon.signal(signal.SIGCONT)
    until(lambda: not first.view().uploads, what="the end of the late uploads")
    stored = {key: path.stat().st_size for key, path in site.hub.objects().items()}
    assert len(stored) == 24
    assert all(size > OBJECT for size in stored.values())


def test_a_killed_get_goes_on_where_it_was(site: Site) -> None:
    """A get that is killed leaves no output; the same command again fetches what was missing and no more, and the
    output appears whole."""
    holder, reader = site.machine("holder"), site.machine("reader")
    original = holder.file("original.bin", 8 * MIB)
    (uri,) = holder.add(original)
    holder.up()
    output = reader.folder / "copy.bin"
    site.relay.hold("GET", 5 * MIB)
    get = reader.start("get", uri, "-o", output, "--json")
    site.relay.wait_held("GET")
    # Verified bytes are recorded four times a second.
    until(lambda: (reader.info(uri).missing or 0) <= 4 * MIB, what="the record of half of the file")
    assert not output.exists()
    get.kill()
    missing = reader.info(uri).missing
    site.relay.release()
    passed = site.relay.get_bytes
    assert not output.exists()
    again = reader.run("get", uri, "-o", output, "--json").fine().document
    assert filecmp.cmp(original, output, shallow=False)
    assert again["length"] == 8 * MIB
    assert missing is not None
    assert 0 < again["fetched_bytes"] <= missing  # which counts whole objects
    assert site.relay.get_bytes - passed <= again["fetched_bytes"] + 32 * 4 * KIB
    noted("bytes fetched again of 8 MiB, killed after 5 MiB", again["fetched_bytes"])
    keys = [p.key for p in site.relay.puts(200)]
    assert len(keys) == len(set(keys)) == 32


def test_a_killed_hub_goes_on_where_it_was(site: Site) -> None:
    """The hub is killed and started again while objects go up and down: the get ends with the right bytes."""
    holder, reader = site.machine("holder"), site.machine("reader")
    original = holder.file("original.bin", 8 * MIB)
    (uri,) = holder.add(original)
    holder.up()
    site.relay.hold("PUT", 4 * MIB)
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    site.relay.wait_held("PUT")
    site.hub.kill()
    killed = time.monotonic()
    site.relay.release()
    site.hub.start()
    noted("hub killed, until it is ready again", elapsed(killed))
    get.wait().fine()
    noted("hub killed, until the file is there", elapsed(killed))
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)
    assert len(site.hub.objects()) == 32


def test_a_killed_message_bus_comes_back(site: Site) -> None:
    """The nats-server is killed while objects go up and down: the hub starts it again, all come back, the get ends with
    the right bytes."""
    holder, reader = site.machine("holder"), site.machine("reader")
    original = holder.file("original.bin", 8 * MIB)
    (uri,) = holder.add(original)
    holder.up()
    site.relay.hold("PUT", 4 * MIB)
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    site.relay.wait_held("PUT")
    killed = time.monotonic()
    site.hub.kill_nats()
    noted("bus killed, until it answers again", elapsed(killed))
    site.relay.release()
    get.wait().fine()
    noted("bus killed, until the file is there", elapsed(killed))
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)
    assert len(site.hub.objects()) == 32


def test_a_planned_reconnect_fails_nothing_over(site: Site) -> None:
    """A daemon that joins a further channel reconnects with its new rights in the middle of its uploads: no upload is
    given up, and each object goes up once."""
    site.hub.channel("other")
    holder, reader = site.machine("holder"), site.machine("reader")
    original = holder.file("original.bin", 8 * MIB)
    (uri,) = holder.add(original)
    holder.up()
    site.relay.rate = 512 * KIB
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    until(lambda: site.relay.put_bytes > MIB, what="the first uploads")
    holder.join("other")
    until(lambda: "other" in holder.view().offered_channels, what="the new channel in the daemon's status")
    stranger = site.machine("stranger", "other")
    seeks = holder.view().seeks
    assert stranger.run("get", "ff" * 32, "--timeout", "2s", "-o", "nothing").code == 3
    assert holder.view().seeks > seeks, "the daemon does not hear its new channel: it did not reconnect"
    assert get.process.poll() is None, "the transfer was over before the reconnect"
    site.relay.rate = None
    get.wait().fine()
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)
    view = holder.view()
    assert view.failures == 0
    keys = [p.key for p in site.relay.puts()]
    assert len(keys) == len(set(keys)) == 32


def test_a_slow_line_keeps_its_lease(make_site: Callable[..., Site]) -> None:
    """An object that takes longer than a lease on a slow line is uploaded once: what has really gone out counts, not
    what the system took into its buffers at once."""
    site = make_site(miniblock=MIB, object=4 * MIB)
    holder, reader = site.machine("holder"), site.machine("reader")
    original = holder.file("original.bin", 2 * MIB)
    holder.up()
    (uri,) = holder.add(original)
    site.relay.rate = 160 * KIB
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    until(lambda: site.relay.puts(200), what="the end of the upload")
    (put,) = site.relay.puts()
    assert put.ended is not None
    noted("an upload on a slow line (lease of 10 s)", put.ended - put.began)
    site.relay.rate = None
    get.wait().fine()
    assert len(site.relay.puts()) == 1
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)
