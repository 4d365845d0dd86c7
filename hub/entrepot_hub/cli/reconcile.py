"""``entrepot-hub channel reconcile``: compare the bucket with the ledger, and mend what differs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.core.units import format_size
from entrepot_hub.cli.access import access, settings_of
from entrepot_hub.cli.display import note, print_json, print_table, progress, say
from entrepot_hub.cli.options import ChannelName, Folder, Json

if TYPE_CHECKING:
    from entrepot_hub.services.comparison import Comparison, Finding
    from entrepot_hub.services.settings import HubSettings

#: What was found, and what was (or would be) done about it.
_WORDS = {
    "adopted": "unknown, proved by its header: taken in",
    "removed": "unknown or not what it should be: removed",
    "found": "had arrived unnoticed: ready",
    "replaced": "another object than the ledger knows: looked at again",
    "differs": "another object than the ledger knows: to be looked at",
    "lost": "in the ledger, not in the bucket: its bytes are free",
    "tombstone": "held against a late upload: set right",
    "foreign": "no object of a channel here: left alone",
}


def reconcile(
    name: ChannelName,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what differs.")] = False,
    folder: Folder = None,
    as_json: Json = False,
) -> None:
    """Compare a channel's bucket with the ledger and mend what differs: objects that nobody knows are taken in or
    removed, lost ones are forgotten. Safe at any time; a running hub does it every day by itself."""
    found = asyncio.run(_all(settings_of(folder), name, dry_run=dry_run, quiet=as_json))
    if as_json:
        print_json(found)
        return
    print_table(
        ("key", "bytes", "what"),
        [(f.key, _size(f), _WORDS.get(f.found, f.found)) for f in found.findings],
        empty="the bucket holds what the ledger says",
    )
    stored = f"{found.listed} keys with {format_size(found.bytes)} in the bucket"
    say(f"{stored}; {found.agreed} objects are as the ledger says")
    for word, count in sorted(found.counts.items()):
        say(f"{count} {word}")
    if dry_run and found.counts:
        note("note: nothing was changed. Without --dry-run it is mended.")


def _size(finding: Finding) -> str:
    """Bytes of a finding; things that were found by what their keys begin with are not counted."""
    return "many keys" if finding.key.endswith("/") and not finding.length else format_size(finding.length)


async def _all(settings: HubSettings, name: str, *, dry_run: bool, quiet: bool) -> Comparison:
    from entrepot_hub.services.comparison import EXAMPLES, Comparison, Reconcile

    total = Comparison(channel=name, dry_run=dry_run)
    async with access(settings) as way:
        with progress("comparing", quiet=quiet) as shown:
            while True:
                page: Comparison = await way.hub.call(
                    "channel.reconcile", Reconcile(name=name, cursor=total.cursor, dry_run=dry_run)
                )
                total.listed += page.listed
                total.bytes += page.bytes
                total.agreed += page.agreed
                total.findings = [*total.findings, *page.findings][:EXAMPLES]
                for word, count in page.counts.items():
                    total.counts[word] = total.counts.get(word, 0) + count
                total.cursor = page.cursor
                shown(f"{total.listed} keys")
                if page.cursor is None:
                    return total
