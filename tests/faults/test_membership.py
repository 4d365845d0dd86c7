"""Channels apart from each other, and members that are put out."""

from __future__ import annotations

import filecmp
import time

from tests.servers.nodes import MIB, Site, elapsed
from tests.servers.relay import noted, until


def test_what_is_added_to_one_channel_is_never_offered_in_another(site: Site) -> None:
    """Daemons that are in two channels, the one that added a file to the first and one that fetched it there, hear it
    sought in the second and offer nothing; in the first it is served."""
    site.hub.channel("other")
    giver, taker = site.machine("giver", "demo", "other"), site.machine("taker", "demo", "other")
    inside, outside = site.machine("inside", "demo"), site.machine("outside", "other")
    original = giver.file("original.bin", MIB)
    (uri,) = giver.add(original, channel="demo")
    stream = uri.split("/")[3]
    giver.begin_up(), taker.begin_up()
    giver.wait_up(), taker.wait_up()
    taker.run("get", uri, "-o", "copy.bin").fine()
    until(lambda: inside.holders(uri) == 2, what="both holders at the hub")
    before = [(machine.view().seeks, machine.view().offers) for machine in (giver, taker)]
    refused = outside.run("get", stream, "-o", "copy.bin", "--timeout", "3s", "--json")
    assert refused.code == 3
    assert refused.error["kind"] == "no-holder"
    for machine, (seeks, offers) in zip((giver, taker), before, strict=True):
        assert machine.view().seeks > seeks, f"{machine.name} did not hear it sought"
        assert machine.view().offers == offers, f"{machine.name} offered it"
    assert not site.hub.objects("other")
    assert not (outside.folder / "copy.bin").exists()
    inside.run("get", uri, "-o", "copy.bin").fine()
    assert filecmp.cmp(original, inside.folder / "copy.bin", shallow=False)


def test_a_revoked_reader_is_gone_while_it_reads(site: Site) -> None:
    """A member is revoked while its get runs: the get ends denied and leaves no output."""
    holder, reader = site.machine("holder"), site.machine("reader")
    (uri,) = holder.add(holder.file("original.bin", 8 * MIB))
    holder.up()
    site.relay.hold("GET", 2 * MIB)
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    site.relay.wait_held("GET")
    site.hub.command("channel", "revoke", "demo", "reader").fine()
    revoked = time.monotonic()
    ended = get.wait()
    noted("member revoked, until its get ended", elapsed(revoked))
    assert ended.code == 4, ended
    print(ended.error["kind"], ended.error["message"])
    assert ended.error["hint"]
    assert not (reader.folder / "copy.bin").exists()
    again = reader.run("get", uri, "-o", "copy.bin", "--timeout", "5s", "--json")
    assert again.code in {3, 4}
    print(again.error["kind"], again.error["message"])


def test_a_revoked_provider_is_gone_while_it_uploads(site: Site) -> None:
    """A member is revoked while its daemon uploads: the daemon's status shows it, it offers and uploads no more, and
    another holder brings the rest."""
    holder, second, reader = (site.machine(name) for name in ("holder", "second", "reader"))
    original = holder.file("original.bin", 6 * MIB)
    (uri,) = holder.add(original)
    second.add(original)
    holder.up()
    site.relay.hold("PUT", MIB)
    get = reader.start("get", uri, "-o", "copy.bin", "--json")
    site.relay.wait_held("PUT")
    second.up()
    site.hub.command("channel", "revoke", "demo", "holder").fine()
    revoked = time.monotonic()
    until(lambda: "demo" not in holder.view().channels, what="the daemon's knowledge that it is out")
    noted("provider revoked, until its daemon's status shows it", elapsed(revoked))
    site.relay.release()
    get.wait().fine()
    noted("provider revoked, until another brought the rest", elapsed(revoked))
    assert filecmp.cmp(original, reader.folder / "copy.bin", shallow=False)
    shown = holder.run("status").fine().out
    print(shown)
    assert holder.view().offered_channels == ()
