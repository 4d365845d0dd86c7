"""All commands, in the order in which ``entrepot --help`` lists them."""

from __future__ import annotations

from typing import Final

from entrepot.cli.commands import COMMANDS, application

app: Final = application(COMMANDS)
