"""The public interface of ``import entrepot``: a change here is a change for every user."""

from __future__ import annotations

import datetime as dt
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import entrepot
from entrepot.core import errors

NAMES = {
    "Added",
    "Blocking",
    "BlockingFile",
    "Conflict",
    "Corrupt",
    "Denied",
    "EntrepotError",
    "Got",
    "Info",
    "Internal",
    "InvalidInput",
    "Joined",
    "Node",
    "NodeSettings",
    "NotFound",
    "Opening",
    "Progress",
    "RemoteFile",
    "RetryLater",
    "SchemaLock",
    "Story",
    "StreamId",
    "StreamKind",
    "StreamUri",
    "add",
    "default_home",
    "errors",
    "get",
    "open",
}

#: Methods and their parameters, in order; a star where only names count.
METHODS = {
    "join": "invite_url * name",
    "add": "path * channel hub copy progress",
    "add_many": "paths * channel hub copy progress",
    "get": "target output * force channel hub deadline wait progress",
    "get_many": "targets folder * force channel hub deadline wait at_once progress",
    "open": "target * channel hub deadline",
    "cat": "target offset length * channel hub deadline",
    "info": "target * channel hub",
    "why": "target * channel hub",
    "entries": "channel hub",
    "status": "",
    "verify": "target * progress",
    "remove": "target * force",
    "whoami": "",
}


def parameters_of(function: object) -> str:
    assert callable(function)
    words: list[str] = []
    for one in list(inspect.signature(function).parameters.values())[1:]:
        if one.kind is one.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(one.name)
    return " ".join(words)


def test_the_names_are_these() -> None:
    """What is exported is exactly the list above, and all of it is listed by dir()."""
    assert set(entrepot.__all__) == NAMES
    assert set(dir(entrepot)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_leads_somewhere(name: str) -> None:
    """Each exported name can be had, and is called what it is exported as."""
    found = getattr(entrepot, name)
    assert found.__name__.rpartition(".")[2] == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that is not exported is told as Python does, so that hasattr works."""
    assert not hasattr(entrepot, "nope")


def test_all_errors_are_there() -> None:
    """Every class of the tree of errors is exported."""
    assert {one.__name__ for one in errors.KINDS.values()} | {"EntrepotError"} <= NAMES


@pytest.mark.parametrize("method", sorted(METHODS))
def test_both_faces_have_the_same_methods(method: str) -> None:
    """The asynchronous and the blocking node take the same parameters, those listed above."""
    assert parameters_of(getattr(entrepot.Node, method)) == METHODS[method]
    assert parameters_of(getattr(entrepot.Blocking, method)) == METHODS[method]


def test_a_node_needs_no_settings() -> None:
    """Without settings a node's home is the default one, which can be asked for."""
    assert entrepot.Node().settings == entrepot.NodeSettings(home=entrepot.default_home())


@pytest.mark.parametrize("name", ["add", "get", "open"])
def test_the_functions_are_the_methods(name: str) -> None:
    """The functions for a program without a node of its own take what the methods take."""
    method = inspect.signature(getattr(entrepot.Blocking, name)).parameters
    assert list(inspect.signature(getattr(entrepot, name)).parameters) == list(method)[1:]


def _certificate() -> bytes:
    """A certificate of an authority that nobody knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_the_functions_read_the_environment_as_the_commands_do(tmp_path: Path) -> None:
    """``entrepot.add`` in a program uses ENTREPOT_HOME, ENTREPOT_CA_FILE and the proxies; nothing is read before."""
    program = (
        "import entrepot, os, sys\n"
        "get = entrepot.get\n"
        "os.environ |= {'ENTREPOT_HOME': sys.argv[1], 'ENTREPOT_CA_FILE': sys.argv[2], 'NO_PROXY': 'a.example',\n"
        "               'HTTPS_PROXY': 'http://proxy:1'}\n"
        "try:\n"
        "    entrepot.add(sys.argv[2])\n"
        "except entrepot.NotFound as error:\n"
        "    print(error.kind)\n"
        "from entrepot.cli.shared import shared\n"
        "settings = shared().node.settings\n"
        "print(settings.home, settings.ca_file, settings.hub_settings('https://b.example').proxy,\n"
        "      settings.hub_settings('https://a.example').proxy)\n"
    )
    authority = tmp_path / "ca.pem"
    authority.write_bytes(_certificate())
    home = tmp_path / "home"
    command = [sys.executable, "-W", "error", "-c", program, str(home), str(authority)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["not-joined", f"{home} {authority} http://proxy:1 None"]
    assert (home / "store").is_dir()


@pytest.mark.parametrize("ending", ["", "raise SystemExit(4)", "open('/none')"])
def test_the_shared_node_is_closed_when_the_program_ends(tmp_path: Path, ending: str) -> None:
    """A program that used the functions ends without a word of ours, also when it ends with an error, and the node
    was closed."""
    program = (
        "import entrepot, sys\n"
        "from entrepot.services.node import Node\n"
        "close = Node.aclose\n"
        "async def aclose(node):\n"
        "    await close(node)\n"
        "    print('closed')\n"
        "Node.aclose = aclose\n"
        "try:\n"
        "    entrepot.add(sys.executable)\n"
        "except entrepot.NotFound as error:\n"
        "    print(error.kind)\n"
        f"{ending}\n"
    )
    environment = {**os.environ, "ENTREPOT_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert done.stdout.splitlines() == ["not-joined", "closed"]
    said = done.stderr.splitlines()
    if ending.startswith("open"):
        assert (done.returncode, said[0], said[-1][:17]) == (
            1,
            "Traceback (most recent call last):",
            "FileNotFoundError",
        )
        assert len([line for line in said if "Traceback" in line]) == 1
        assert not [line for line in said if "entrepot" in line]
    else:
        assert (done.returncode, said) == (4 if ending else 0, [])


def test_importing_it_loads_nothing() -> None:
    """``import entrepot`` is free: nothing heavy is loaded before it is used."""
    program = (
        "import sys, entrepot\n"
        "print(sorted(m for m in sys.modules if m.startswith('entrepot.') or m in ('aiohttp', 'asyncio', 'nats')))\n"
        "entrepot.StreamUri\n"
        "print('aiohttp' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["[]", "False", ""]
