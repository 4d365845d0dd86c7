"""docker-compose.yml without Docker: its services as plain processes, each at a loopback address of its own.

What Compose would do with images, networks and volumes is done with programs of this machine, names that resolve
to those addresses, and folders. Commands, environments, dependencies and health checks are the file's own. Linux
only: elsewhere there is one loopback address.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PATIENCE = 60.0

#: A ``sitecustomize`` for every Python that a service starts: names that resolve as those of containers do.
NAMES = """
import json, os, socket
_names, _resolve = json.loads(os.environ["COMPOSE_NAMES"]), socket.getaddrinfo
def getaddrinfo(host, *arguments, **named):
    host = host.decode() if isinstance(host, bytes) else host
    return _resolve(_names.get(host, host), *arguments, **named)
socket.getaddrinfo = getaddrinfo
"""

#: What stands for docker: knows ``docker compose exec -T SERVICE COMMAND …`` and nothing else.
_DOCKER = """#!{python}
import json, os, sys
match sys.argv[1:]:
    case ["compose", "exec", "-T", service, *command] if command:
        with open({state!r}) as file:
            services = json.load(file)
        one = services[service]
        for seen, real in one["paths"]:
            command = [word.replace(seen, real) for word in command]
        os.execvpe(command[0], command, one["environment"])
    case other:
        sys.exit("not understood: docker " + " ".join(other))
"""


@dataclass(frozen=True, kw_only=True)
class Image:
    """What stands for an image: what its containers run (before the ``command``), their variables and health check."""

    program: tuple[str, ...] = ()
    environment: Mapping[str, str]
    health: Sequence[str] | None = None


class Service:
    """A service of the file and, once started, its process."""

    def __init__(self, name: str, described: Mapping[str, Any], folder: Path, address: str, image: Image) -> None:
        self.name = name
        self.described = described
        self.address = address
        self.process: subprocess.Popen[bytes] | None = None
        self.well = False
        self.log = folder / f"{name}.log"
        self._image = image
        self.paths: list[tuple[str, str]] = []
        for volume in described.get("volumes", ()):
            source, target = volume.split(":")[:2]
            real = folder / source
            real.mkdir(mode=0o700, exist_ok=True)
            self.paths.append((target, str(real)))
        self.paths.sort(key=lambda pair: -len(pair[0]))

    def here(self, text: str) -> str:
        """A text of the file with this machine's folders and addresses, and without Compose's own notation."""
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
        for target, real in self.paths:
            text = re.sub(rf"(?<![\w.]){re.escape(target)}(?![\w-])", real, text)
        return text.replace("0.0.0.0", self.address).replace("127.0.0.1", self.address)

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """What its processes find in their environment."""
        own = {**self._image.environment, **self.described.get("environment", {})}
        return {**{name: self.here(value) for name, value in own.items()}, **more}

    @property
    def command(self) -> list[str]:
        """What it runs."""
        return [*self._image.program, *(self.here(word) for word in self.described.get("command", ()))]

    @property
    def health(self) -> list[str] | None:
        """The health check's command: the file's own, else the image's."""
        described = self.described.get("healthcheck", {})
        if described.get("disable"):
            return None
        test = described.get("test") or self._image.health
        if test is None:
            return None
        words = ["/bin/sh", "-c", test[1]] if test[0] == "CMD-SHELL" else list(test[1:])
        return [self.here(word) for word in words]

    @property
    def needs(self) -> dict[str, Mapping[str, Any]]:
        """What it depends on, and how."""
        return dict(self.described.get("depends_on", {}))


class Compose:
    """The services of a file. ``images`` makes, from the folder, what stands for each image, by its name without tag;
    ``prepare`` may change a service's command before it runs; ``deputies`` names services that write down
    addresses for another to listen at. Use as a context manager."""

    def __init__(
        self,
        file: Path,
        folder: Path,
        images: Mapping[str, Image],
        *,
        prepare: Callable[[Service, list[str]], list[str]],
        deputies: Mapping[str, str],
    ) -> None:
        self.folder = folder
        described = yaml.safe_load(file.read_text(encoding="utf-8"))["services"]
        numbers = {name: number for number, name in enumerate(described, 2)}
        network = f"127.{secrets.randbelow(250) + 2}.{secrets.randbelow(250) + 2}"
        self.services: dict[str, Service] = {}
        for name, one in described.items():
            image = images[one["image"].split(":")[0]]
            address = f"{network}.{numbers[deputies.get(name, name)]}"
            self.services[name] = Service(name, one, folder, address, image)
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(NAMES, encoding="utf-8")
        self._variables = {
            "COMPOSE_NAMES": json.dumps({name: one.address for name, one in self.services.items()}),
            "PYTHONPATH": str(folder / "site"),
            "HOME": str(folder),
        }
        self._prepare = prepare
        self._docker()

    def __enter__(self) -> Compose:
        return self

    def __exit__(self, *_: object) -> None:
        for service in self.services.values():
            with suppress(AssertionError):
                self.stop(service.name)

    def up(self, *profiles: str) -> None:
        """Start what does not run yet, in order, and wait until all of it is well."""
        active = [name for name, one in self.services.items() if self._active(one, profiles)]
        for name in self._ordered(active):
            service = self.services[name]
            for other, how in service.needs.items():
                if other in active:
                    self._wait(self.services[other], how["condition"])
            if service.process is None:
                self.start(name)
        for name in active:
            self._wait(self.services[name], "completed" if name in self._errands else "service_healthy")

    def start(self, name: str) -> None:
        """Start a service anew."""
        service = self.services[name]
        service.well = False
        command = self._prepare(service, service.command)
        with service.log.open("ab") as log:
            service.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=service.environment(self._variables),
                cwd=self.folder,
            )

    def run(self, name: str) -> None:
        """Run an errand of the file once more, to its good end."""
        self.start(name)
        self._wait(self.services[name], "completed")

    def stop(self, name: str) -> int:
        """End a service as ``docker stop`` does; its exit code."""
        service = self.services[name]
        process, service.process = service.process, None
        if process is None:
            return 0
        process.terminate()
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not end:\n{self._said(service)}") from None

    def shell(self, script: str) -> str:
        """Run lines for a shell, in which ``docker compose exec -T`` works; what they print."""
        done = subprocess.run(
            ["/bin/sh", "-ec", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            env={"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.defpath}"},
            cwd=self.folder,
            timeout=PATIENCE,
            check=False,
        )
        logs = "".join(f"\n== {one.name}\n{self._said(one)}" for one in self.services.values())
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}{logs}"
        return done.stdout

    def healthy(self, service: Service) -> bool:
        """Whether its health check has passed since it started; without one, whether it runs."""
        assert service.process is not None
        if service.process.poll() is not None:
            raise AssertionError(f"{service.name} ended with {service.process.returncode}:\n{self._said(service)}")
        if service.well or service.health is None:
            return True
        looked = subprocess.run(
            service.health,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=service.environment(self._variables),
            cwd=self.folder,
            timeout=PATIENCE,
            check=False,
        )
        service.well = looked.returncode == 0
        return service.well

    @property
    def _errands(self) -> Collection[str]:
        """Services that are to end: somebody waits for that, or Compose would not know."""
        return {
            name
            for one in self.services.values()
            for name, how in one.needs.items()
            if how["condition"] == "service_completed_successfully"
        }

    def _active(self, service: Service, profiles: Collection[str]) -> bool:
        wanted = service.described.get("profiles", ())
        return not wanted or bool(set(wanted) & set(profiles))

    def _ordered(self, names: Sequence[str]) -> Iterator[str]:
        done: set[str] = set()

        def visit(name: str) -> Iterator[str]:
            if name in done:
                return
            done.add(name)
            for other, how in self.services[name].needs.items():
                if other in names:
                    yield from visit(other)
                else:
                    assert not how.get("required", True), f"{name} needs {other}, which is of another profile"
            yield name

        for name in names:
            yield from visit(name)

    def _wait(self, service: Service, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert service.process is not None
            if condition in {"completed", "service_completed_successfully"}:
                code = service.process.poll()
                if code is not None:
                    assert code == 0, f"{service.name} ended with {code}:\n{self._said(service)}"
                    return
            elif condition == "service_started" or self.healthy(service):
                return
            time.sleep(0.5)
        raise AssertionError(f"{service.name} is not {condition} after {PATIENCE} s:\n{self._said(service)}")

    def _said(self, service: Service) -> str:
        return service.log.read_text(errors="replace")[-3000:] if service.log.exists() else ""

    def _docker(self) -> None:
        state = self.folder / "services.json"
        services = {
            name: {"paths": one.paths, "environment": one.environment(self._variables)}
            for name, one in self.services.items()
        }
        state.write_text(json.dumps(services), encoding="utf-8")
        program = self.folder / "bin" / "docker"
        program.parent.mkdir()
        program.write_text(_DOCKER.format(python=sys.executable, state=str(state)), encoding="utf-8")
        program.chmod(0o700)


@dataclass(frozen=True)
class Instruction:
    """A line of a Dockerfile."""

    stage: int
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its arguments."""
        return shlex.split(self.text)


def read_dockerfile(path: Path) -> list[Instruction]:
    """The instructions of a Dockerfile, in order."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    found: list[Instruction] = []
    stage = -1
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, text = line.strip().partition(" ")
        if name:
            stage += name == "FROM"
            found.append(Instruction(stage, name, text.strip()))
    return found
