"""``--bwlimit`` on the command line."""

from __future__ import annotations

import json

from tests.integration.cli.conftest import Cli


def test_status_tells_the_daemons_limit(cli: Cli) -> None:
    """What ``up --bwlimit`` was given is what the daemon keeps to and shows, whatever the environment says."""
    assert cli.run("up", "--detach", "--bwlimit", "2M:10M", ENTREPOT_BWLIMIT="1M").returncode == 0
    status = cli.run("status")
    assert "\nbwlimit   2M:10M\n" in status.stdout
    assert json.loads(cli.run("status", "--json").stdout)["daemon"]["bwlimit"] == "2M:10M"
    again = cli.run("up", "--detach", "--bwlimit", "5M")
    assert "The daemon that runs has the limit 2M:10M, not 5M. To change it: entrepot down" in again.stderr
    assert again.stdout == ""
    assert "has the limit" not in cli.run("up", "--detach", "--bwlimit", "2M:10M").stderr
    cli.run("down")


def test_what_is_no_limit_is_said_before_anything_begins(cli: Cli) -> None:
    """An unreadable or hopeless rate is an error of the words."""
    for words in (("up",), ("get", "ff" + "00" * 31)):
        done = cli.run(*words, "--bwlimit", "1k")
        assert (done.returncode, done.stderr.splitlines()[0]) == (
            2,
            "entrepot: '1k' is too slow: 32.0 KiB/s is the least",
        )
        done = cli.run(*words, "--bwlimit", "1.5M")
        assert (done.returncode, "whole number" in done.stderr) == (2, True)
    assert not cli.home.exists()
