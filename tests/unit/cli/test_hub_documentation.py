"""docs/hub.md tells of every command and option of entrepot-hub, and of none that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from entrepot_hub.cli.main import app

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "hub.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### entrepot-hub ([a-z -]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
_OPTION = re.compile(r"(?<![\w-])--[a-z0-9][a-z0-9-]*")


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    within = getattr(command, "commands", None)
    if not within:
        yield " ".join(path), command
        return
    for name, part in within.items():
        yield from _commands(part, (*path, name))


COMMANDS = dict(_commands(typer.main.get_command(app), ()))


def test_every_command_has_its_section() -> None:
    """The sections of the page are the commands."""
    assert set(SECTIONS) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_documented(name: str) -> None:
    """A command's section names each of its options and no other."""
    options = {
        word
        for parameter in COMMANDS[name].params
        if parameter.param_type_name == "option"
        for word in [*parameter.opts, *parameter.secondary_opts]
    } - {"--help", "-h"}
    assert set(_OPTION.findall(SECTIONS[name])) == options


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_parameter_has_a_help(name: str) -> None:
    """The help of each command explains the command and each argument and option."""
    assert COMMANDS[name].help
    assert all(parameter.help for parameter in COMMANDS[name].params if parameter.name != "help")


def test_the_package_is_the_program() -> None:
    """``python -m entrepot_hub`` is entrepot-hub, and a default is shown as a value."""
    done = subprocess.run(
        [sys.executable, "-m", "entrepot_hub", "channel", "create", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith("Usage: entrepot-hub channel create")
    assert "none (the default)" in " ".join(done.stdout.split())
    assert "(none)" not in done.stdout
