"""The README is run: every command and every program in it, as typed, and what it shows is compared.

A block marked ``console`` holds commands after a prompt ``machine$``; each machine is a home, a working folder and a
shell of its own. The lines below a command are what it prints, errors included; ``…`` stands for anything in a line,
or, alone, for any lines. A command without lines below it only has to succeed. Blocks marked ``python`` run on the
laptop.

The sections stand in the order of who reads them and run in the order in which things come to be (``STORIES``).
What a test cannot have, a domain or a cloud, is replaced by the table in :meth:`World.substitutions`; nothing else is.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer.main
from tests.servers.ministack import run_ministack
from tests.servers.process import free_port

from entrepot.cli import output
from entrepot.cli.application import app as node_app
from entrepot.core.errors import KINDS
from entrepot_hub.cli.main import app as hub_app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BIN = Path(sys.executable).parent

#: Sections in the order in which they are run.
STORIES = (
    "Two commands",
    "Installation",
    "For a hub's admin",
    "For a channel's owner",
    "On a node",
    "Is the bucket fit, and what does it cost?",
    "From Python",
    "Give and take rights",
    "Look after the hub",
)
#: Not run here, and why.
ELSEWHERE = {
    "scripts/demo": "tests/integration/test_demo.py runs it, with smaller files",
    "scripts/test": "it runs this test",
}
#: Goes on until the end; its first lines are compared.
FOREGROUND = "entrepot-hub serve"
#: What a slow machine may print besides.
_PROGRESS = re.compile(r"(?:\S+: )?(?:reading|fetching|verifying) .*|.*\b(?:reading|fetching|verifying)\b.*%.*")
_TOKEN = re.compile(r"https://hub\.example\.org/j/[\w-]+")
_PROMPT = re.compile(r"(\w+)\$ (.*)")


@dataclass(frozen=True)
class Step:
    """One command on one machine, and what the README shows of its output (nothing: not compared)."""

    machine: str
    command: str
    shown: tuple[str, ...]
    status: int = 0


@dataclass(frozen=True)
class Block:
    section: str
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page with the headings they stand under."""
    found, section, language = [], "", None
    lines: list[str] = []
    for line in page.splitlines():
        if language is not None:
            if line == "```":
                found.append(Block(section, language, "\n".join(lines)))
                language = None
            else:
                lines.append(line)
        elif line.startswith("```"):
            language, lines = line[3:], []
        elif line.startswith("#"):
            section = line.lstrip("#").strip()
    assert language is None
    return found


def steps(text: str) -> list[Step]:
    """The commands of a ``console`` block. A here-document belongs to its command; ``echo $?`` tells which status
    the command before it is to end with."""
    found: list[Step] = []
    lines = text.splitlines()
    while lines:
        prompt = _PROMPT.fullmatch(lines.pop(0))
        assert prompt, f"no prompt where one should be: {text}"
        machine, command = prompt.groups()
        if end := re.search(r"<<'(\w+)'", command):
            at = lines.index(end[1])
            command = "\n".join([command, *lines[: at + 1]])
            del lines[: at + 1]
        shown = []
        while lines and not _PROMPT.fullmatch(lines[0]):
            shown.append(lines.pop(0))
        if command == "echo $?":
            before = found.pop()
            found.append(Step(before.machine, before.command, before.shown, int(shown[0])))
        found.append(Step(machine, command, tuple(shown)))
    return found


def pattern(lines: tuple[str, ...]) -> re.Pattern[str]:
    """What matches output like ``lines``."""
    parts = []
    for line in lines:
        if line == "…":
            parts.append(r"(?:.*\n)*")
        else:
            parts.append(r"[ \t]*" + ".*".join(re.escape(piece.strip(" ")) for piece in line.split("…")) + r"[ \t]*\n")
    return re.compile("".join(parts))


@dataclass
class Machine:
    """A home, a working folder, and what a shell would remember between two commands."""

    home: Path
    folder: Path
    status: int = 0
    state: str = ""

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENTREPOT_", "XDG_"))}
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "HOME": str(self.home), "PATH": path, "COLUMNS": "160", "LC_ALL": "C.UTF-8"}

    def run(self, command: str) -> str:
        """Output and errors of a command, in the order in which they came."""
        memory = self.home / ".shell"
        memory.write_text(self.state)
        script = f". {shlex.quote(str(memory))}\n(exit {self.status})\n{command}\n"
        script += f"status=$?\nexport -p >{shlex.quote(str(memory))}\nexit $status\n"
        done = subprocess.run(
            ["bash", "-c", script],
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        self.status, self.state = done.returncode, memory.read_text()
        return "".join(f"{line}\n" for line in done.stdout.splitlines() if not _PROGRESS.fullmatch(line))


@dataclass
class World:
    """The machines of the README, and the S3 server that stands for a cloud."""

    folder: Path
    s3: str
    http: int = field(default_factory=free_port)
    nats: int = field(default_factory=free_port)
    websocket: int = field(default_factory=free_port)
    invite: str = "there is no invite yet"
    machines: dict[str, Machine] = field(default_factory=dict)
    serving: list[subprocess.Popen[str]] = field(default_factory=list)

    def substitutions(self) -> tuple[tuple[str, str], ...]:
        """What is typed and shown in the README, and what stands for it here, applied in this order."""
        here = f"127.0.0.1:{self.http}"
        listen = f"--listen {here} --nats-listen 127.0.0.1:{self.nats}"
        pip = f"{sys.executable} -m pip install --dry-run --no-deps --no-index --no-build-isolation"
        return (
            # No DNS, no certificate, no well-known ports: the hub is reached where it listens.
            ("init --url https://hub.example.org", f"init --url http://{here} {listen}"),
            ("wss://hub.example.org/nats", f"ws://127.0.0.1:{self.websocket}/nats"),
            ("https://hub.example.org", f"http://{here}"),
            ("hub.example.org", here),
            ("127.0.0.1:4223", f"127.0.0.1:{self.websocket}"),
            ("port 8480", f"port {self.http}"),
            # Nobody writes below /srv.
            ("/srv/entrepot", str(self.folder / "srv")),
            # Amazon is this machine's S3 server, where the bucket is yet to be made.
            ("channel create neuro", "channel create neuro --create-bucket"),
            ("?region=eu-central-1", f"?region=us-east-1&endpoint={self.s3}"),
            ("python3 -m venv", "python3 -m venv --without-pip"),
            # Nothing is downloaded: pip, another one, says what it would install, and whether the extras exist.
            ("~/entrepot-env/bin/pip install", pip),
        )

    def here(self, text: str, invite: str) -> str:
        """Text of the README as it is true here; ``invite`` stands for every invite."""
        text = _TOKEN.sub(lambda _: invite, text)
        for typed, meant in self.substitutions():
            text = text.replace(typed, meant)
        return text

    def machine(self, name: str) -> Machine:
        if name not in self.machines:
            home = self.folder / name
            home.mkdir()
            self.machines[name] = Machine(home, ROOT if name == "checkout" else home)
        return self.machines[name]

    def do(self, step: Step) -> None:
        """One step, compared with what is shown of it."""
        machine = self.machine(step.machine)
        command = self.here(step.command, self.invite)
        shown = pattern(tuple(self.here(line, f"http://127.0.0.1:{self.http}/j/…") for line in step.shown))
        if step.command == FOREGROUND:
            assert shown.match(self.serve(machine, command, len(step.shown))), step
            return
        told = machine.run(command)
        assert machine.status == step.status, f"{command}\nended with {machine.status} and said:\n{told}"
        if step.shown:
            assert shown.fullmatch(told), f"{command}\nsaid:\n{told}\ninstead of:\n" + "\n".join(step.shown)
        if found := re.search(r"^http://\S+/j/\S+$", told, re.MULTILINE):
            self.invite = found[0]

    def serve(self, machine: Machine, command: str, lines: int) -> str:
        """Start what stays in the foreground; its first lines."""
        (machine.home / ".shell").write_text(machine.state)
        process = subprocess.Popen(
            ["bash", "-c", f". {shlex.quote(str(machine.home / '.shell'))}\nexec {command}"],
            env=machine.environment(),
            cwd=machine.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self.serving.append(process)
        assert process.stdout is not None
        return "".join(process.stdout.readline() for _ in range(lines))

    def end(self) -> None:
        """End the daemons and whatever stays in the foreground."""
        for name, machine in self.machines.items():
            if name not in {"checkout", "hub"}:
                machine.run("entrepot down")
        for process in self.serving:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


@pytest.fixture
def world() -> Iterator[World]:
    """The world before the first command: what the README takes for granted is there."""
    folder = Path(tempfile.mkdtemp(prefix="readme-"))
    try:
        with run_ministack(folder) as s3:
            made = World(folder, s3.endpoint)
            unit = bytes(i * 7 % 251 for i in range(251))
            size = 24 << 20
            (made.machine("lab").folder / "big.nwb").write_bytes((unit * (size // 251 + 1))[:size])
            keys = f'{{"access_key": "{s3.access_key}", "secret_key": "{s3.secret_key}"}}'
            (made.machine("hub").folder / "neuro-keys.json").write_text(keys)
            try:
                yield made
            finally:
                made.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(300)
def test_all_commands_of_the_readme_do_what_it_shows(world: World) -> None:
    """From the first command to the last, each story's commands end and print as shown."""
    found = [block for block in blocks(README) if block.language in {"console", "python"}]
    assert {block.section for block in found} == set(STORIES)
    ran = 0
    for section in STORIES:
        for block in (one for one in found if one.section == section):
            if block.language == "python":
                laptop = world.machine("laptop")
                program = world.folder / "program.py"
                program.write_text(world.here(block.text, world.invite))
                shown = laptop.run(f"mkdir -p python; cd python; {sys.executable} -W error {program}")
                assert laptop.status == 0, shown
                continue
            for step in steps(block.text):
                if step.command in ELSEWHERE:
                    assert os.access(ROOT / step.command, os.X_OK)
                    continue
                world.do(step)
                ran += 1
    assert ran > 25


def test_the_block_parser_reads_prompts_documents_and_statuses() -> None:
    """A here-document, an output of several lines and ``echo $?`` are understood."""
    text = "a$ cat <<'END'\nx\nEND\nx\nb$ false\nno\nb$ echo $?\n1"
    assert steps(text) == [
        Step("a", "cat <<'END'\nx\nEND", ("x",)),
        Step("b", "false", ("no",), 1),
        Step("b", "echo $?", ("1",)),
    ]


@pytest.mark.parametrize(
    ("shown", "told", "same"),
    [
        (("a", "b"), "a\nb\n", True),
        (("a",), "a\nb\n", False),
        (("a b",), "a  b\n", False),
        (("a … c",), "a b c\n", True),
        (("a", "…"), "a\n", True),
        (("a", "…", "z"), "a\nb\nc\nz\n", True),
        (("a", "…", "z"), "a\nb\n", False),
    ],
)
def test_only_what_is_wild_may_differ(shown: tuple[str, ...], told: str, same: bool) -> None:
    """A wildcard covers what it should, and everything else has to be the same."""
    assert (pattern(shown).fullmatch(told) is not None) is same


# -- what the pages say ----------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {slug(found) for found in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file or heading of the project has its file and heading."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), f"{page.name} links to {target}"
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


def test_the_module_map_is_the_tree() -> None:
    """docs/architecture.md names every module of node/ and hub/ once, with a line about it, and no other."""
    rows = re.findall(r"^\| `(entrepot(?:_hub)?/[\w/]+\.py)` \| (\S.*\S) \|$", ARCHITECTURE, re.MULTILINE)
    named = [name for name, _ in rows]
    tree = {
        path.relative_to(ROOT / source).as_posix()
        for source in ("node", "hub")
        for path in (ROOT / source).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(named) == sorted(set(named)), "a module is named twice"
    assert sorted(tree - set(named)) == [], "add a line to docs/architecture.md"
    assert sorted(set(named) - tree) == [], "remove the line from docs/architecture.md"


def mentioned(page: str) -> list[tuple[str, list[str]]]:
    """Program and words of every command of ours in a page's code: fenced, indented or in a sentence."""
    code = [block.text for block in blocks(page)]
    page = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    code += re.findall(r"^    (.*)$", page, re.MULTILINE)
    code += re.findall(r"`([^`]+)`", page)
    found = []
    for text in code:
        for line in text.splitlines():
            call = re.match(r"(?:\w+\$ |    )?(entrepot(?:-hub)?) (.*)", line)
            if call is not None:
                words = re.split(r"[|;&<>]", call[2])[0].replace("`", "").split()
                found.append((call[1], words))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    """Each command of ours that a page mentions exists, with each option it is given there."""
    for program, words in mentioned(page.read_text(encoding="utf-8")):
        command = typer.main.get_command(node_app if program == "entrepot" else hub_app)
        rest = list(words)
        while rest and (commands := getattr(command, "commands", None)) is not None:
            if not rest[0].isascii() or not rest[0].islower():
                break  # a placeholder, as in `entrepot COMMAND --help`
            word = rest.pop(0)
            assert word in commands, f"{page.name}: {program} {' '.join(words)}"
            command = commands[word]
        options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "--json"}
        for word in rest:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0].rstrip(".,") in options, f"{page.name}: {program} {' '.join(words)}"


def test_the_index_has_every_page() -> None:
    """docs/index.md links to all pages of the documentation."""
    index = ROOT / "docs" / "index.md"
    linked = set(re.findall(r"\]\(([\w./]+\.md)\)", index.read_text(encoding="utf-8")))
    assert linked >= {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}


@pytest.mark.parametrize("source", ["node/entrepot", "hub/entrepot_hub"])
def test_commands_that_messages_advise_exist(source: str) -> None:
    """No hint sends anybody to a command that is not there."""
    advised = 0
    for path in sorted((ROOT / source).rglob("*.py")):
        for program, words in re.findall(
            r"(?:: |\()(entrepot(?:-hub)?) ([a-z][a-z -]*)", path.read_text(encoding="utf-8")
        ):
            command = typer.main.get_command(node_app if program == "entrepot" else hub_app)
            for word in words.split():
                commands = getattr(command, "commands", None)
                if commands is None:
                    break
                assert word in commands, f"{path.name} speaks of {program} {words}"
                command = commands[word]
            advised += 1
    assert advised > 2


def test_every_command_of_the_hub_is_named() -> None:
    """The README's table of the hub's commands has all of them and no other."""
    table = README.split("| `entrepot-hub` | does |")[1].split("\n\n")[0]
    named = {word for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for word in re.findall(r"`(.*?)`", row)}
    root = typer.main.get_command(hub_app)
    there = set()
    for name, command in root.commands.items():  # type: ignore[attr-defined]  # it is a group
        inner = getattr(command, "commands", None)
        there |= {name} if inner is None else {f"{name} {word}" for word in inner}
    assert named == there


def test_the_exit_codes_are_all_told() -> None:
    """The README's table has the codes of all error classes and of the ends that are no error."""
    table = {int(code) for code in re.findall(r"^\| (\d+) \| \S", README, re.MULTILINE)}
    assert table == {0, output.INTERRUPTED, output.READER_GONE, *(one.exit_code for one in KINDS.values())}


def test_the_error_classes_are_all_named() -> None:
    """README and architecture name every class of the error tree."""
    for one in set(KINDS.values()):
        assert f"`{one.__name__}`" in README
        assert f"`{one.__name__}`" in ARCHITECTURE


def test_no_story_takes_a_machine_of_this_world() -> None:
    """The README names no host but reserved example names, and no path of anybody's machine."""
    hosts = set(re.findall(r"https?://([\w.-]+)", README))
    assert {host for host in hosts if not host.endswith(("example.org", "127.0.0.1"))} == set()
    assert not re.search(r"(?<![\w.~])/(?:home|root|tmp|work|Users)/", README)
