"""Tools of ``scripts/bench`` that bring something of their own: git-annex its repositories, libtorrent its peers, curl
its server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, override
from urllib.parse import urlsplit

from scripts.bench_runs import BENCH, MADE, SHOWN, Failed, Place, Run, Running, Tool, run
from tests.servers.process import answers_http, free_port

if TYPE_CHECKING:
    from tests.servers.namespaces import Party


class GitAnnex(Tool):
    """git-annex with an S3 special remote, unencrypted and unchunked: ``copy --to`` in one repository, ``get`` in a
    clone. ``prepare`` is ``git annex add``; making the repositories, which happens once in a life, is not measured."""

    name = "git-annex"
    _NAMED = "file"

    def __init__(self) -> None:
        super().__init__()
        self._prepared: dict[tuple[Path, str, str], Path] = {}
        self._brought: dict[tuple[str, str], Path] = {}

    @override
    def missing(self) -> str | None:
        if shutil.which("git") is None:
            return "there is no git (Debian: git)"
        return None if self._program() else f"there is no git-annex: {MADE}"

    @override
    def prepare(self, file: Path, place: Place, party: Party | None = None) -> Run:
        folder = self._folder()
        environment = self._environment(place)

        def call(*words: str | Path) -> Run:
            return run(words, environment, party, folder=folder)

        program = self._program()
        assert program is not None
        call("git", "init", "--quiet")
        call(program, "init", "--quiet", "up")
        server = urlsplit(place.endpoint)
        # What a remote holds is named by its content: a folder of its own, or a second upload would be none.
        settings = {
            "type": "S3",
            "encryption": "none",
            "host": server.hostname or "",
            "port": "80" if server.scheme == "http" else str(server.port or 443),
            "protocol": server.scheme,
            "requeststyle": "path",
            "signature": "v4",
            "region": place.region,
            "bucket": place.bucket,
            "fileprefix": f"{place.key}-{folder.name}/",
            "autoenable": "false",
        }
        call(program, "initremote", "--quiet", "place", *(f"{name}={value}" for name, value in settings.items()))
        shutil.copyfile(file, folder / self._NAMED)  # no link: it takes the right to write from what it adds
        added = call(program, "add", "--quiet", self._NAMED)
        call("git", "commit", "--quiet", "--message", "a file")
        with self._lock:
            self._prepared[file, place.endpoint, place.key] = folder
        return added

    @override
    def up(self, file: Path, place: Place, party: Party | None = None) -> Run:
        program = self._program()
        assert program is not None
        name = (file, place.endpoint, place.key)
        if name not in self._prepared:
            self.prepare(file, place, party)
        with self._lock:
            folder = self._prepared.pop(name)
        words: list[str | Path] = [program, "copy", "--quiet", "--to", "place", self._NAMED]
        done = run(words, self._environment(place), party, folder=folder)
        with self._lock:
            former = self._brought.pop((place.endpoint, place.key), None)
            self._brought[place.endpoint, place.key] = folder
        if former is not None:
            self._remove(former)
        return done

    @override
    def down(self, place: Place, file: Path, party: Party | None = None) -> Run:
        program = self._program()
        assert program is not None
        origin = self._brought[place.endpoint, place.key]
        folder = self._folder()
        environment = self._environment(place)
        run(["git", "clone", "--quiet", origin, folder], environment, party)
        run([program, "init", "--quiet", "down"], environment, party, folder=folder)
        run([program, "enableremote", "--quiet", "place"], environment, party, folder=folder)
        # The user says that the remote is the right one; asked on a terminal by "git-annex verifyremote".
        run(["git", "config", "remote.place.annex-verified", "verified"], environment, party, folder=folder)
        # Only from there: the origin is a folder that it could copy from.
        done = run([program, "get", "--quiet", "--from", "place", self._NAMED], environment, party, folder=folder)
        file.unlink(missing_ok=True)
        shutil.copyfile(folder / self._NAMED, file)
        self._remove(folder)
        return done

    def _folder(self) -> Path:
        folder = self.scratch() / uuid.uuid4().hex[:12]
        folder.mkdir()
        return folder

    @staticmethod
    def _remove(folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)  # it takes the right to write from where it keeps contents
        shutil.rmtree(folder, ignore_errors=True)

    def _environment(self, place: Place) -> dict[str, str]:
        program = self._program()
        assert program is not None
        found = self.environment(place.aws())
        people = {
            f"GIT_{role}_{part}": value
            for role in ("AUTHOR", "COMMITTER")
            for part, value in (("NAME", "bench"), ("EMAIL", "bench@localhost"))
        }
        # By itself it goes to no server on loopback.
        settings = {"init.defaultBranch": "main", "annex.security.allowed-ip-addresses": "all"}
        config = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_COUNT": str(len(settings))}
        for number, (name, value) in enumerate(settings.items()):
            config |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
        # It signs the server's name without its port, which servers on ports of their own refuse. Told that the server
        # is its proxy, it asks there for the name alone; nothing else lies between the two.
        proxy = {"http_proxy": place.endpoint} if urlsplit(place.endpoint).scheme == "http" else {}
        magic = {"MAGIC": str(program.parent / "magic.mgc")}  # as the script that comes with it does
        return found | people | config | proxy | magic | {"PATH": f"{program.parent}{os.pathsep}{found['PATH']}"}

    @staticmethod
    def _program() -> Path | None:
        return next(BENCH.glob("lib/python3*/site-packages/git_annex/git-annex"), None)


class Torrent(Tool):
    """libtorrent from one machine straight to the other, peers introduced by hand: what a direct connection could do,
    where there can be one. ``prepare`` makes the torrent (version 2: SHA-256, as ours); up is nothing; down is the
    leecher's whole life, and the CPU seconds and the peak are of both."""

    name = "libtorrent"
    direct = True
    _make = """
import sys
from pathlib import Path
import libtorrent
source, target = Path(sys.argv[1]), Path(sys.argv[2])
files = libtorrent.list_files(str(source))
made = libtorrent.create_torrent(files, flags=libtorrent.create_torrent.v2_only)
libtorrent.set_piece_hashes(made, str(source.parent))
target.write_bytes(libtorrent.bencode(made.generate()))
"""
    _peer = """
import os, sys
import libtorrent
from pathlib import Path
verb, torrent, folder, address, told = sys.argv[1:]
session = libtorrent.session({
    "listen_interfaces": f"{address}:0",
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_incoming_utp": False, "enable_outgoing_utp": False, "tick_interval": 50,
    "alert_mask": libtorrent.alert.category_t.status_notification | libtorrent.alert.category_t.storage_notification
    | libtorrent.alert.category_t.error_notification,
})
params = libtorrent.add_torrent_params()
params.ti = libtorrent.torrent_info(torrent)
params.save_path = folder
params.flags &= ~(libtorrent.torrent_flags.auto_managed | libtorrent.torrent_flags.paused)
if verb == "seed":
    params.flags |= libtorrent.torrent_flags.seed_mode
handle = session.add_torrent(params)
def until(kind):
    while True:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            if isinstance(alert, (libtorrent.torrent_error_alert, libtorrent.file_error_alert)):
                sys.exit(alert.message())
            if isinstance(alert, kind):
                return
if verb == "seed":
    while not session.listen_port():
        session.wait_for_alert(100)
    Path(told + ".new").write_text(str(session.listen_port()))
    os.replace(told + ".new", told)
    sys.stdin.read()
else:
    host, port = told.split(":")
    handle.connect_peer((host, int(port)))
    until(libtorrent.torrent_finished_alert)
    handle.flush_cache()
    until(libtorrent.cache_flushed_alert)
"""

    def __init__(self) -> None:
        super().__init__()
        self._torrents: dict[Path, Path] = {}
        self._sources: dict[tuple[str, str], tuple[Path, Path, Party | None]] = {}

    @override
    def missing(self) -> str | None:
        try:
            import libtorrent  # noqa: F401
        except ImportError as error:
            return f"there is no libtorrent ({error}): scripts/environment makes it"
        return None

    @override
    def prepare(self, file: Path, place: Place, party: Party | None = None) -> Run:
        target = self.scratch() / f"{uuid.uuid4().hex}.torrent"
        done = run([sys.executable, "-c", self._make, file, target], self.environment(), party)
        with self._lock:
            self._torrents[file] = target
        return done

    @override
    def up(self, file: Path, place: Place, party: Party | None = None) -> Run:
        if file not in self._torrents:
            self.prepare(file, place, party)
        with self._lock:
            self._sources[place.endpoint, place.key] = (file, self._torrents.pop(file), party)
        return Run(0.0, 0.0, 0)

    @override
    def down(self, place: Place, file: Path, party: Party | None = None) -> Run:
        source, torrent, holder = self._sources[place.endpoint, place.key]
        folder = Path(tempfile.mkdtemp(prefix=".bench-", dir=file.parent))
        told = folder / "port"
        address = "127.0.0.1" if holder is None else holder.address
        mine = "127.0.0.1" if party is None else party.address
        words = [sys.executable, "-c", self._peer]
        seeder = Running(
            [*words, "seed", torrent, source.parent, address, told], self.environment(), holder, self.scratch()
        )
        try:
            end = time.monotonic() + 60
            while not told.exists():
                if seeder.ended or time.monotonic() > end:
                    seeder.wait(0.1)
                    raise Failed("the seeder does not listen")
                time.sleep(0.01)
            peer = f"{address}:{told.read_text()}"
            leecher = run([*words, "leech", torrent, folder, mine, peer], self.environment(), party)
            seeding = seeder.wait(60)
            if file.is_dir():
                shutil.rmtree(file)
            os.replace(folder / source.name, file)
        finally:
            seeder.kill()
            shutil.rmtree(folder, ignore_errors=True)
        return Run(leecher.wall, leecher.cpu + seeding.cpu, max(leecher.rss, seeding.rss))

    @override
    def up_many(self, folder: Path, place: Place, party: Party | None = None) -> Run:
        return self.up(folder, place, party)

    @override
    def down_many(self, place: Place, folder: Path, party: Party | None = None) -> Run:
        return self.down(place, folder, party)


class Curl(Tool):
    """curl, PUT and GET on nginx: what HTTP itself costs. The server is started at the first use of a place's party."""

    name = "curl on nginx"
    _port = 8089  # in a namespace; on loopback a free one
    _settings = """
{user}
daemon off;
worker_processes auto;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {address}:{port};
        location / {{
            root {folder}/files;
            dav_methods PUT DELETE;
            create_full_put_path on;
        }}
    }}
}}
"""

    def __init__(self) -> None:
        super().__init__()
        self._servers: dict[str, tuple[subprocess.Popen[bytes], int]] = {}

    @override
    def missing(self) -> str | None:
        if self._nginx() is None:
            return "there is no nginx (Debian: nginx-light)"
        return None if shutil.which("curl") else "there is no curl (Debian: curl)"

    @override
    def up(self, file: Path, place: Place, party: Party | None = None) -> Run:
        return run([*self._words(), "--upload-file", file, self._url(place)], self.environment(), party)

    @override
    def down(self, place: Place, file: Path, party: Party | None = None) -> Run:
        return run([*self._words(), "--output", file, self._url(place)], self.environment(), party)

    @override
    def close(self) -> None:
        with self._lock:
            for server, _ in self._servers.values():
                server.terminate()
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait()
            self._servers.clear()
        super().close()

    @staticmethod
    def _words() -> list[str]:
        return ["curl", "--disable", "--silent", "--show-error", "--fail", "--noproxy", "*"]

    def _url(self, place: Place) -> str:
        address = "127.0.0.1" if place.party is None else place.party.address
        with self._lock:
            if address not in self._servers:
                self._servers[address] = self._start(address, place.party)
            return f"http://{address}:{self._servers[address][1]}/{place.key}"

    def _start(self, address: str, party: Party | None) -> tuple[subprocess.Popen[bytes], int]:
        port = self._port if party is not None else free_port()
        folder = self.scratch() / f"nginx-{address}"
        (folder / "files").mkdir(parents=True)
        user = "user root;" if os.geteuid() == 0 else ""
        settings = folder / "nginx.conf"
        settings.write_text(self._settings.format(user=user, folder=folder, address=address, port=port))
        program = self._nginx()
        assert program is not None

        def start() -> subprocess.Popen[bytes]:
            words: list[str | Path] = [program, "-c", settings, "-p", folder, "-e", folder / "error.log"]
            with (folder / "log").open("wb") as log:
                return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def ready() -> bool:
            if party is None:
                return answers_http(port)
            return (folder / "pid").exists()  # it listens before it writes it

        server = start() if party is None else party.call(start)
        end = time.monotonic() + 30
        while not ready():
            if server.poll() is not None or time.monotonic() > end:
                server.kill()
                raise Failed(f"nginx does not start: {(folder / 'error.log').read_text()[-SHOWN:]}")
            time.sleep(0.02)
        return server, port

    @staticmethod
    def _nginx() -> str | None:
        return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
