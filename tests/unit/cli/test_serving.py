"""How ``status`` tells a daemon's hubs."""

from __future__ import annotations

from entrepot.cli.serving import _hub_lines
from entrepot.core.api import Fault
from entrepot.services.control import HubView, UploadView


def view(reason: Fault | None = None, uploads: tuple[UploadView, ...] = ()) -> HubView:
    """A hub as the daemon tells it."""
    return HubView(
        host="hub", url="https://hub", name="lab", node="N", state="down", since=0.0, reason=reason, channels=("demo",),
        offered_channels=("demo",), uploads=uploads,
    )  # fmt: skip


def upload(number: int, stage: str) -> UploadView:
    """One of its uploads."""
    return UploadView(channel="demo", stream="fc" * 32, object=number, stage=stage, sent=1, size=2)


def test_an_object_that_is_granted_anew_is_listed_once() -> None:
    """Of two grants for an object the newer is shown."""
    lines = _hub_lines(view(uploads=(upload(0, "reporting"), upload(1, "uploading"), upload(0, "uploading"))))
    shown = [line.split() for line in lines if line.startswith("uploading")]
    assert sorted((words[3], words[4]) for words in shown) == [("0", "uploading"), ("1", "uploading")]


def test_a_daemon_is_not_repeated() -> None:
    """What a command would be told to repeat, the daemon does by itself; other hints are shown as they are."""
    away = Fault(kind="bus-unreachable", message="the bus cannot be reached", hint="Repeat the command")
    assert "          The daemon goes on trying." in _hub_lines(view(away))
    assert not any("Repeat" in line for line in _hub_lines(view(away)))
    other = Fault(kind="suspended", message="suspended", hint="Ask the admin.")
    assert "          Ask the admin." in _hub_lines(view(other))
