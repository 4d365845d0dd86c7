"""The house rules that no linter knows."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import pickle
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core import errors
from entrepot.core.errors import KINDS, EntrepotError, from_wire, to_wire

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "node" / "entrepot", ROOT / "hub" / "entrepot_hub")
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
MOST_LINES = 600


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


each_module = pytest.mark.parametrize("path", MODULES, ids=name_of)
each_lock = pytest.mark.parametrize("path", LOCKS, ids=name_of)
each_class = pytest.mark.parametrize("kind_class", dict.fromkeys(KINDS.values()))


# --- modules ---------------------------------------------------------------------------------------------


def test_the_modules_are_found() -> None:
    """The tests below look at modules of both packages, and at locks."""
    assert {path.relative_to(ROOT).parts[1] for path in MODULES} == {"entrepot", "entrepot_hub"}
    assert [path.name for path in LOCKS] == ["bench.txt", "dev.txt", "image.txt", "ministack.txt"]


@each_module
def test_a_module_can_be_read_in_one_go(path: Path) -> None:
    """No module is longer than 600 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@each_module
def test_a_module_is_named_for_something(path: Path) -> None:
    """No module or package has a name that would fit anything."""
    names = {*path.relative_to(ROOT).parent.parts, path.stem}
    assert not names & {"common", "helper", "helpers", "misc", "util", "utils"}


@each_module
def test_a_module_says_what_it_is(path: Path) -> None:
    """Every module begins with a docstring."""
    assert ast.get_docstring(tree_of(path))


def _own_code(tree: ast.Module) -> Iterator[str]:
    """What an ``__init__`` module holds besides a docstring, imports, ``__all__`` and lazy re-exports."""
    for node in tree.body:
        match node:
            case ast.Expr(value=ast.Constant(value=str())) | ast.Import() | ast.ImportFrom():
                pass
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                if not (name.startswith("_") or name.isupper()):
                    yield name
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from _own_code(ast.Module(body=node.body, type_ignores=[]))
            case ast.FunctionDef(name="__getattr__" | "__dir__"):
                pass
            case _:
                yield ast.unparse(node).splitlines()[0]


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=name_of)
def test_a_package_only_exports_again(path: Path) -> None:
    """An ``__init__`` holds imports and names of what it exports (lazily at most), no code of its own."""
    assert list(_own_code(tree_of(path))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('"""A."""\nfrom a import b\n__all__ = ["b"]\n', []),
        ('"""A."""\nif TYPE_CHECKING:\n    from a import b\ndef __getattr__(name): ...\n', []),
        ('"""A."""\ndef work(): ...\n', ["def work():"]),
        ('"""A."""\nprint(1)\n', ["print(1)"]),
        ("state = {}\n", ["state"]),
    ],
)
def test_own_code_is_told_from_exports(source: str, found: list[str]) -> None:
    """The rule above finds functions, statements and state, and lets imports and lazy exports pass."""
    assert list(_own_code(ast.parse(source))) == found


def _reads_environment(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "putenv"):
                return True
            case ast.ImportFrom(module="os", names=names):
                if {name.name for name in names} & {"environ", "environb", "getenv", "putenv"}:
                    return True
    return False


@pytest.mark.parametrize("path", [p for p in MODULES if "cli" not in p.parts], ids=name_of)
def test_only_entry_points_read_the_environment(path: Path) -> None:
    """Outside ``cli`` no module reads or sets environment variables: settings are passed in."""
    assert not _reads_environment(tree_of(path))


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("import os\nx = os.environ.get('A')", True),
        ("import os\nx = os.getenv('A')", True),
        ("from os import environ", True),
        ("from os import path", False),
        ("import os\nx = os.sep", False),
    ],
)
def test_reading_the_environment_is_recognised(source: str, reads: bool) -> None:
    """The rule above knows the ways to get at environment variables."""
    assert _reads_environment(ast.parse(source)) is reads


# --- the pure core ---------------------------------------------------------------------------------------

#: What import-linter cannot see: functions that need no import, and modules within external packages.
_IMPURE_CALLS = {"breakpoint", "eval", "exec", "input", "open", "print"}
_IMPURE_IMPORTS = {"http.client", "importlib.resources", "urllib.request"}


def _impurities(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in _IMPURE_CALLS:
                yield name
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name in _IMPURE_IMPORTS)
            case ast.ImportFrom(module=str(module), names=names):
                imported = {module, *(f"{module}.{name.name}" for name in names)}
                yield from sorted(imported & _IMPURE_IMPORTS)
            case ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield "await"


@pytest.mark.parametrize("path", [p for p in MODULES if "core" in p.parts], ids=name_of)
def test_the_core_is_pure(path: Path) -> None:
    """No core module opens, prints, evaluates text, awaits, or imports I/O out of a larger package."""
    assert list(_impurities(tree_of(path))) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("open('a')", ["open"]),
        ("from urllib import request", ["urllib.request"]),
        ("from http.client import HTTPConnection", ["http.client"]),
        ("import urllib.request", ["urllib.request"]),
        ("async def f(): await g()", ["await"]),
        ("async def f(): ...", []),
        ("from urllib.parse import urlsplit", []),
        ("channel.open()", []),
    ],
)
def test_impurity_is_recognised(source: str, found: list[str]) -> None:
    """The rule above finds impure builtins, imports and waiting, and no method of the same name."""
    assert list(_impurities(ast.parse(source))) == found


def test_the_node_starts_without_the_libraries_of_the_hub() -> None:
    """Importing the node's packages loads none of the hub's libraries, so it installs without them."""
    packages = sorted(
        ".".join(path.relative_to(ROOT / "node").with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.is_relative_to(PACKAGES[0]) and path.name != "__main__.py"
    )
    extras = ["alembic", "boto3", "botocore", "entrepot_hub", "psycopg", "sqlalchemy", "structlog"]
    program = (
        "import importlib, sys\n"
        f"for name in {packages!r}: importlib.import_module(name)\n"
        f"print(sorted(set({extras!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# --- tests -----------------------------------------------------------------------------------------------

TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_a_test_says_what_it_proves(path: Path) -> None:
    """Every test function has a docstring."""
    silent = [
        node.name
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def _ours(source: str) -> Any:
    """The function ``f`` of a source text that passes for a module of the node's package."""
    scope: dict[str, Any] = {}
    exec(compile(source, str(PACKAGES[0] / "example.py"), "exec"), scope)
    return scope["f"]


async def test_our_code_may_not_block_the_event_loop() -> None:
    """The guard of the tests stops a coroutine of ours that sleeps instead of waiting."""
    f = _ours("import time\nasync def f(): time.sleep(0.001)")
    with pytest.raises(BlockingError, match=r"time\.sleep"):
        await f()


@pytest.mark.blocking
async def test_the_guard_can_be_lifted() -> None:
    """A test marked as blocking may block."""
    f = _ours("import time\nasync def f(): time.sleep(0.001)\n")
    assert await f() is None


async def test_our_code_may_block_a_thread() -> None:
    """The guard lets blocking work pass where it belongs."""
    f = _ours("import asyncio, time\nasync def f(): return await asyncio.to_thread(time.sleep, 0.001)")
    assert await f() is None


async def test_our_code_may_import_late() -> None:
    """The guard lets a coroutine import a module, which reads files."""
    f = _ours("async def f():\n    import this_module_is_made_by_the_test as m\n    return m.x")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder, "this_module_is_made_by_the_test.py").write_text("x = 7\n", encoding="utf-8")
        patch.syspath_prepend(folder)
        assert await f() == 7


# --- the distribution ------------------------------------------------------------------------------------


@each_lock
def test_a_lock_names_no_host_and_no_path(path: Path) -> None:
    """A lock is nothing but versions and hashes: it installs from whatever index pip is set up to use."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"://|file:|http:|https:|localhost", text)
    assert not re.search(r"^\s*(-[A-Za-z]|--(?!hash=))", text, re.MULTILINE)
    assert not re.search(r"@\s*[./]", text)


@each_lock
def test_a_lock_pins_every_package_by_hash(path: Path) -> None:
    """Each requirement of a lock has one version and at least one SHA-256."""
    entries = re.split(
        r"\n(?=[a-z0-9])", re.sub(r"^\s*#.*\n?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    assert len(entries) > 3
    for entry in entries:
        assert re.match(r"[a-z0-9-]+(\[[a-z,-]+\])?==[0-9]\S*\s", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry


def test_the_lock_holds_what_the_project_asks_for() -> None:
    """Every dependency of the node, of the extras and of development is in the lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *(one for extra in project["project"]["optional-dependencies"].values() for one in extra),
        *project["dependency-groups"]["dev"],
    ]
    lock = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))
    names = set()
    for requirement in wanted:
        match = re.match(r"[A-Za-z0-9_.-]+", requirement)
        assert match is not None
        names.add(match.group().lower().replace("_", "-").replace(".", "-"))
    assert names <= locked


def test_commands_lead_somewhere() -> None:
    """Each command that the distribution installs can be imported and called."""
    commands = [entry for entry in distribution("entrepot").entry_points if entry.group == "console_scripts"]
    assert {entry.name for entry in commands} == {"entrepot", "entrepot-hub"}
    for entry in commands:
        assert callable(entry.load())


@pytest.mark.parametrize("package", ["entrepot", "entrepot_hub"])
def test_a_package_is_typed(package: str) -> None:
    """Each package tells type checkers that it carries types."""
    file = importlib.import_module(package).__file__
    assert file is not None
    assert (Path(file).parent / "py.typed").is_file()


# --- errors ----------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
fields = st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,15}", fullmatch=True), scalars, max_size=8).map(
    lambda data: {k: v for k, v in data.items() if k not in {"self", "message", "kind", "hint"}}
)


@each_module
def test_a_hint_is_a_sentence(path: Path) -> None:
    """Hints begin with a capital letter, unless they begin with something to type."""
    for call in ast.walk(tree_of(path)):
        if not isinstance(call, ast.Call):
            continue
        for word in call.keywords:
            match word:
                case ast.keyword("hint", ast.Constant(str(text)) | ast.JoinedStr([ast.Constant(str(text)), *_])):
                    assert not text[0].islower() or text.startswith("pip install"), text


def test_every_error_class_is_reached_by_a_kind() -> None:
    """The classes of the kinds are exactly the classes of the tree, and none of them has subclasses."""
    classes = {
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, EntrepotError) and value is not EntrepotError
    }
    assert set(KINDS.values()) == classes
    assert all(one.__bases__ == (EntrepotError,) for one in classes)


@each_class
def test_the_default_kind_of_a_class_is_its_own(kind_class: type[EntrepotError]) -> None:
    """An error made without a kind has a kind that belongs to its class."""
    assert KINDS[kind_class("it happened").kind] is kind_class


def test_exit_codes_tell_classes_apart() -> None:
    """Every class has an exit code of its own, and none says success."""
    codes = [one.exit_code for one in set(KINDS.values())]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_is_a_plain_word_and_makes_its_class(kind: str) -> None:
    """A kind is lower case words joined by hyphens, and an error of that kind knows it."""
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind)
    assert KINDS[kind]("it happened", kind=kind).kind == kind


def test_a_kind_of_another_class_is_refused() -> None:
    """A class cannot be made with a kind that belongs to another."""
    with pytest.raises(TypeError, match="belongs to Denied"):
        errors.NotFound("it happened", kind="revoked")


@given(kind=st.sampled_from(sorted(KINDS)), message=st.text(max_size=50), hint=st.none() | st.text(), data=fields)
def test_an_error_survives_the_wire(kind: str, message: str, hint: str | None, data: dict[str, errors.Scalar]) -> None:
    """What arrives has the class, kind, message, hint and data of what was sent."""
    sent = KINDS[kind](message, kind=kind, hint=hint, **data)
    arrived = from_wire(**to_wire(sent))  # type: ignore[arg-type]
    assert type(arrived) is type(sent)
    assert (arrived.kind, arrived.message, arrived.hint, arrived.data) == (kind, message, hint, data)
    assert str(arrived) == message


@given(kind=st.text(max_size=20), keys=st.lists(st.text(max_size=10) | st.sampled_from(["self", "kind", "hint"])))
def test_any_description_makes_an_error(kind: str, keys: list[str]) -> None:
    """Whatever kind and names of fields a peer sends, an error comes of it and nothing else."""
    error = from_wire(kind, "it happened", None, dict.fromkeys(keys, 1))
    assert error.kind == (kind if kind in KINDS else "retry-later")


def test_what_travels_is_bounded() -> None:
    """Long texts and many fields are cut before they travel."""
    many: dict[str, Any] = {f"f{i}": i for i in range(100)}
    wire = to_wire(errors.Internal("m" * 5000, hint="h" * 5000, **many))
    assert (wire["message"], wire["hint"]) == ("m" * 2000, "h" * 2000)
    assert isinstance(wire["data"], dict)
    assert len(wire["data"]) == 32


@each_class
def test_an_error_survives_another_process(kind_class: type[EntrepotError]) -> None:
    """Pickled and unpickled, an error is the same."""
    sent = kind_class("it happened", hint="do this", size=3)
    arrived = pickle.load(io.BytesIO(pickle.dumps(sent)))
    assert type(arrived) is kind_class
    assert (arrived.kind, arrived.message, arrived.hint, arrived.data) == (
        sent.kind,
        "it happened",
        "do this",
        {"size": 3},
    )
