"""The hub's settings and its folder."""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from entrepot.core.errors import Conflict, Corrupt, Denied, EntrepotError, InvalidInput, NotFound, RetryLater
from entrepot_hub.services.identity import create_hub, database_url, load_identity, load_master
from entrepot_hub.services.settings import HubSettings, Listen, load_settings, parse_settings

ANYWHERE = Listen("127.0.0.1", 0)


def parse(text: str, folder: Path = Path("/srv/hub")) -> HubSettings:
    return parse_settings(folder, text.encode())


def test_everything_but_the_address_has_a_default():
    """One line is a whole configuration."""
    settings = parse('urls = ["https://Hub.example.org/"]')
    assert settings.urls == ("https://hub.example.org",)
    assert str(settings.listen) == "127.0.0.1:8480"
    assert settings.secure
    assert settings.jwt_life == 3600
    assert database_url(settings) == "sqlite:////srv/hub/hub.db"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "urls = []",
        'urls = "https://a"',
        'urls = ["http://a"]',
        'urls = ["https://a/b"]',
        'urls = ["https://a"]\nmore = 1',
        'urls = ["https://a"]\nlisten = "8480"',
        'urls = ["https://a"]\nlisten = "h:99999"',
        'urls = ["https://a"]\n[nats]\nserver = ["http://a"]',
        'urls = ["https://a"]\n[nats]\nserver = ["nats://user:password@a"]',
        'urls = ["https://a"]\n[nats]\nlisten = "x"',
        'urls = ["https://a"]\n[limits]\njwt = 5',
        'urls = ["https://a"]\n[tls]\ncertificate = "x"',
        "urls = [",
        "\x00",
    ],
)
def test_wrong_settings_are_refused(text):
    """Unknown names, wrong types and unsafe addresses are all one kind of error."""
    with pytest.raises(InvalidInput) as caught:
        parse(text)
    assert caught.value.kind == "invalid-setting"


def test_plain_http_is_for_closed_networks_that_say_so():
    """http:// beyond this machine takes a setting of its own."""
    assert not parse('urls = ["http://10.0.0.1:8480"]\nplain = true').secure


def test_no_secret_shows():
    """A database's password and a master key from the environment are in no repr."""
    settings = parse('urls = ["https://a"]\n[database]\nurl = "postgresql://u:hunter2@h/d"')
    assert database_url(settings) == "postgresql://u:hunter2@h/d"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in repr(HubSettings(folder=Path("/"), urls=("https://a",), master_key="hunter2"))


def test_a_hub_is_made_whole(tmp_path):
    """What init makes opens again, for its owner alone."""
    folder = tmp_path / "a" / "hub"
    made = create_hub(folder, "https://hub.example.org", ANYWHERE, ANYWHERE)
    settings = load_settings(folder)
    identity = load_identity(settings, load_master(settings))
    assert identity.hub_public == made.hub_public
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in made.backup)
    assert [path.name for path in folder.parent.iterdir()] == ["hub"]


def test_an_empty_folder_is_taken_and_a_used_one_is_not(tmp_path):
    """Not a byte of what is there is touched."""
    (tmp_path / "empty").mkdir()
    create_hub(tmp_path / "empty", "https://a", ANYWHERE, ANYWHERE)
    used = tmp_path / "used"
    used.mkdir()
    (used / "note").write_text("mine")
    for folder in (used, tmp_path / "empty", used / "note"):
        with pytest.raises(Conflict) as caught:
            create_hub(folder, "https://a", ANYWHERE, ANYWHERE)
        assert caught.value.kind == "exists"
    assert [path.name for path in used.iterdir()] == ["note"]


def test_a_folder_that_cannot_be_made(tmp_path):
    """Our error, and nothing half made."""
    (tmp_path / "file").write_text("")
    with pytest.raises(Denied):
        create_hub(tmp_path / "file" / "hub", "https://a", ANYWHERE, ANYWHERE)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_wrong_master_key_opens_nothing(tmp_path):
    """Another key, a damaged identity, a missing file: each its own error."""
    create_hub(tmp_path / "hub", "https://a", ANYWHERE, ANYWHERE)
    settings = load_settings(tmp_path / "hub")
    with pytest.raises(Denied):
        load_identity(settings, load_master(settings, "00" * 32))
    sealed = tmp_path / "hub" / "identity.sealed"
    data = bytearray(sealed.read_bytes())
    data[-1] ^= 1
    sealed.write_bytes(data)
    with pytest.raises(Corrupt):
        load_identity(settings, load_master(settings))
    sealed.unlink()
    with pytest.raises(NotFound):
        load_identity(settings, load_master(settings))


@pytest.mark.parametrize(
    ("code", "error"),
    [("print('0' * 64)", None), ("print('hunter2')", InvalidInput), ("raise SystemExit(3)", RetryLater)],
)
def test_a_master_key_may_come_from_a_command(tmp_path, code, error):
    """Its output is the key; what it prints is in no error."""
    settings = parse(f'urls = ["https://a"]\n[master]\ncommand = [{sys.executable!r}, "-c", "{code}"]', tmp_path)
    if error is None:
        assert load_master(settings).raw == bytes(32)
        return
    with pytest.raises(error) as caught:
        load_master(settings)
    assert "hunter2" not in repr(caught.value)


def test_a_command_that_is_not_there(tmp_path):
    """Our error, not the system's."""
    with pytest.raises(EntrepotError):
        load_master(parse('urls = ["https://a"]\n[master]\ncommand = ["/no/such/program"]', tmp_path))


@pytest.mark.parametrize(
    ("url", "nats", "told", "line"),
    [
        ("http://127.0.0.1:8480", "", "nats://127.0.0.1:4222", None),
        ("http://localhost", "", "nats://127.0.0.1:4222", None),
        ("https://h.example", "", "nats://127.0.0.1:4222", 'urls = ["wss://h.example/nats"]'),
        ("http://h.example", "", "nats://127.0.0.1:4222", 'listen = "0.0.0.0:4222"'),
        ("https://h.example", 'listen = "0.0.0.0:4222"', "nats://h.example:4222", None),
        ("https://h.example:8443", 'listen = "[::]:4222"', "nats://h.example:4222", None),
        ("https://[2001:db8::1]:8443", 'listen = "0.0.0.0:4222"', "nats://[2001:db8::1]:4222", None),
        ("https://h.example", 'listen = "10.0.0.1:4222"', "nats://10.0.0.1:4222", None),
        ("https://h.example", 'urls = ["tls://b.example"]', "tls://b.example", None),
        ("https://h.example", 'urls = ["tls://0.0.0.0"]', "tls://0.0.0.0", 'urls = ["wss://h.example/nats"]'),
        ("https://h.example", 'server = ["tls://b.example:4222"]', "tls://b.example:4222", None),
        ("https://h.example", 'server = ["nats://localhost"]', "nats://localhost", 'urls = ["tls://h.example:4222"]'),
        ("https://h.example", 'server = ["nats://[::1]:4222"]\nurls = ["tls://b.example"]', "tls://b.example", None),
    ],
)
def test_nodes_are_told_where_the_bus_is(url: str, nats: str, told: str, line: str | None):
    """A bus at all addresses has the hub's name; one that only this machine reaches is warned of."""
    listen = "" if "listen" in nats else 'listen = "127.0.0.1:4222"'
    settings = parse(f'urls = ["{url}"]\nplain = true\n[nats]\n{listen}\n{nats}')
    assert settings.told_nats() == (told,)
    warning = settings.nats_warning()
    if line is None:
        assert warning is None
        return
    assert warning is not None
    assert told in warning
    assert line in warning
    mended = "\n".join(part for part in (listen, nats) if part.partition(" ")[0] != line.partition(" ")[0])
    assert parse(f'urls = ["{url}"]\nplain = true\n[nats]\n{mended}\n{line}').nats_warning() is None


def test_a_hub_with_a_bus_of_its_own_tells_its_port():
    """Where the port was left to the system, the real one is told."""
    settings = parse('urls = ["https://h.example"]\n[nats]\nlisten = "0.0.0.0:0"')
    assert settings.told_nats(4711) == ("nats://h.example:4711",)


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs a mount point")
def test_a_mount_point_is_told_as_that(tmp_path, monkeypatch):
    """A hub cannot be moved onto a mount point, whether that is seen before or only when it is tried."""
    for folder in (Path("/proc"), tmp_path / "hub"):
        with pytest.raises(InvalidInput, match="mount point") as caught:
            create_hub(folder, "https://a", ANYWHERE, ANYWHERE)
        assert caught.value.hint == f"Name a folder in it: {folder / 'hub'}"
        monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.EBUSY, "busy")))
    assert list(tmp_path.iterdir()) == []
