"""docs/cli.md tells of every command, option, exit code and variable, and of none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from entrepot.cli import environment, output
from entrepot.cli.application import app
from entrepot.core.errors import KINDS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # it is a group
SECTIONS = dict(re.findall(r"^### entrepot (\S+)\n(.*?)(?=^### |\Z)", PAGE, re.MULTILINE | re.DOTALL))
_OPTION = re.compile(r"(?<![\w-])--?[a-z0-9][a-z0-9-]*")


def test_every_command_has_its_section() -> None:
    """The sections of the page are the commands, in the order of the help."""
    assert list(SECTIONS) == list(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_documented(name: str) -> None:
    """A command's section names each of its options and no other."""
    options = {
        word
        for parameter in COMMANDS[name].params
        if parameter.param_type_name == "option"
        for word in [*parameter.opts, *parameter.secondary_opts]
    } - {"--help", "-h"}
    assert {word for word in _OPTION.findall(SECTIONS[name]) if word != "--"} == options


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_parameter_has_a_help(name: str) -> None:
    """The help of each command explains the command and each argument and option."""
    assert COMMANDS[name].help
    assert all(parameter.help for parameter in COMMANDS[name].params if parameter.name != "help")


def test_every_exit_code_is_documented() -> None:
    """The table has the codes of all error classes and of the ends that are no error."""
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert table == {0, output.INTERRUPTED, output.READER_GONE, *(one.exit_code for one in KINDS.values())}


def test_every_variable_is_documented() -> None:
    """The page names the variables that are read, and no other of ours."""
    ours = {
        environment.HOME,
        environment.CA_FILE,
        environment.DEBUG,
        environment.PLAIN_HTTP,
        environment.BWLIMIT,
    }
    assert set(re.findall(r"ENTREPOT_[A-Z_]+", PAGE)) == ours
