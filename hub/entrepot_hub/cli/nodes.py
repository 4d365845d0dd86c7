"""``entrepot-hub node …``: who is known, who is suspended."""

from __future__ import annotations

import typer

from entrepot_hub.cli.access import ask
from entrepot_hub.cli.display import note, print_json, print_table, say, when
from entrepot_hub.cli.options import Folder, Json, NodeText, give_help

app = typer.Typer(help="Nodes at this hub.", rich_markup_mode=None)
give_help(app)


@app.command("list")
def list_nodes(folder: Folder = None, as_json: Json = False) -> None:
    """List all nodes."""
    from entrepot_hub.services.administration import Nothing

    nodes, _ = ask(folder, "node.list", Nothing())
    if as_json:
        print_json(nodes)
        return
    print_table(
        ("node", "key", "state", "last seen"),
        [(n.name, n.node[:12], n.status, when(n.seen_at)) for n in nodes],
        empty="no nodes yet",
    )


@app.command("suspend")
def suspend(node: NodeText, folder: Folder = None, as_json: Json = False) -> None:
    """Let a node do nothing at this hub until it is resumed."""
    _set("node.suspend", node, folder, as_json=as_json)


@app.command("resume")
def resume(node: NodeText, folder: Folder = None, as_json: Json = False) -> None:
    """Undo a suspension."""
    _set("node.resume", node, folder, as_json=as_json)


def _set(operation: str, node: str, folder: Folder, *, as_json: bool) -> None:
    from entrepot_hub.services.administration import NodeNamed

    found, running = ask(folder, operation, NodeNamed(node=node))
    if as_json:
        print_json(found)
        return
    say(f"{found.name} is {found.status}")
    if not running:
        note("note: no hub is running here; this takes effect when it starts.")
