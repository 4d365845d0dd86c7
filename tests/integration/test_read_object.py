"""scripts/read-object, the second reader of objects: it takes what docs/format.md allows and refuses all else."""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import io
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "read-object"
DATA = ROOT / "tests" / "data"
DOCUMENT = ROOT / "docs" / "format.md"
PATTERN = bytes(i * 7 % 251 for i in range(251))
#: A lock as pinned, and others that differ from it in one thing that objects tell.
LOCK = '{"channel":"demo","codec":"none","format":1,"miniblock":16384,"object":65536}'
OTHER_LOCKS = (
    '{"channel":"demo","codec":"none","format":1,"miniblock":32768,"object":65536}',
    '{"channel":"demo","codec":"none","format":1,"miniblock":16384,"object":131072}',
    '{"channel":"demo","codec":"none","format":1,"miniblock":16384,"object":0}',
    '{"channel":"demo","codec":"none","format":1,"miniblock":8388608,"object":8388608}',
)


class Golden(NamedTuple):
    name: str
    path: Path
    data: bytes
    stream: str
    lock: str
    number: int
    header_length: int
    content: bytes
    """The stream's bytes that the object holds."""


def content(told: dict[str, Any]) -> bytes:
    if "pattern" in told:
        return (PATTERN * (told["pattern"] // 251 + 1))[: told["pattern"]]
    return bytes.fromhex(told["repeat"]) * told["length"]


def load_golden() -> list[Golden]:
    golden = []
    for told in json.loads((DATA / "vectors.json").read_text("utf-8"))["objects"]:
        name, path, header = told["file"].removeprefix("objects/"), DATA / told["file"], told["header_length"]
        data, start = path.read_bytes(), told["offset_in_stream"]
        plain = content(told["content"])[start : start + len(data) - header]
        golden.append(Golden(name, path, data, told["stream"], told["lock"], told["number"], header, plain))
    return golden


GOLDEN = load_golden()
BY_NAME = {golden.name: golden for golden in GOLDEN}
SEVERAL = [BY_NAME[f"several-objects-{number}"] for number in range(3)]
each_golden = pytest.mark.parametrize("golden", GOLDEN, ids=[golden.name for golden in GOLDEN])


def load_reader() -> ModuleType:
    """The script as a module, to try thousands of objects without a process for each."""
    loader = importlib.machinery.SourceFileLoader("read_object", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        loader.exec_module(module)
    return module


READER = load_reader()


def verdict(data: bytes | bytearray, stream: str, lock: str, number: int | None) -> str | None:
    """Why the reader refuses the object, None if it does not."""
    try:
        READER.verify(io.BytesIO(data), READER.parse_stream(stream), READER.parse_lock(lock), number)
    except READER.Corrupt as error:
        return str(error)
    return None


def read_object(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the script in a Python that sees its standard library and nothing else."""
    command = [sys.executable, "-I", "-S", "-B", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=folder)


def asked(golden: Golden, *, number: bool = True) -> list[str]:
    options = ["--stream", golden.stream, "--lock", golden.lock]
    return [*options, "--number", str(golden.number)] if number else options


def assert_refused(done: subprocess.CompletedProcess[bytes], code: int, reason: str) -> None:
    """One sentence on stderr says why, and nothing was shown."""
    assert (done.returncode, done.stdout) == (code, b""), done
    lines = done.stderr.decode("utf-8").splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("read-object: ")
    assert reason in lines[0]


@each_golden
def test_golden_object_is_valid(golden: Golden, tmp_path: Path) -> None:
    """Every golden object is valid, is described as it is, and gives back the bytes of its content."""
    out = tmp_path / "out"
    done = read_object(*asked(golden), "--json", "--extract", out, golden.path)
    assert (done.returncode, done.stderr) == (0, b"")
    told = json.loads(done.stdout)
    assert told["stream"] == golden.stream
    assert told["lock"] == hashlib.sha256(golden.lock.encode()).hexdigest()[:16]
    assert [item["number"] for item in told["objects"]] == [golden.number]
    assert told["objects"][0]["header_length"] == golden.header_length
    assert told["objects"][0]["object_length"] == len(golden.data)
    assert told["objects"][0]["length"] == len(golden.content)
    assert out.read_bytes() == golden.content
    assert os.listdir(tmp_path) == ["out"]


def test_golden_folder_is_valid() -> None:
    """The reader recomputes all vectors and golden objects of the project on its own."""
    done = read_object("--golden", DATA)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().strip() == f"{len(GOLDEN)} golden objects are valid"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"offset_in_stream": 65536', '"offset_in_stream": 65537'),
        ('"pattern": 140000', '"pattern": 140001'),
        ("c3ee4f0dd22805f5", "c3ee4f0dd22805f6"),
        ("f5a5fd42", "f5a5fd43"),
        ("ffbccc67", "ffbccc68"),
        ("fc71132b", "fc71132c"),
        ("some/prefix/540115600d7839be", "some/prefix/540115600d7839bf"),
        ('"file": "objects/tree-1"', '"file": "objects/tree-0"'),
        # Of the object alone, not of the stream that has the same content.
        ('"61",\n    "length": 1\n   },\n   "lock"', '"62",\n    "length": 1\n   },\n   "lock"'),
    ],
)
def test_wrong_vectors_are_noticed(tmp_path: Path, old: str, new: str) -> None:
    """A vector that says something else than the objects do makes the check of the golden folder fail."""
    (tmp_path / "objects").mkdir()
    for golden in GOLDEN:
        (tmp_path / "objects" / golden.name).write_bytes(golden.data)
    text = (DATA / "vectors.json").read_text("utf-8")
    assert old in text
    (tmp_path / "vectors.json").write_text(text.replace(old, new), "utf-8")
    done = read_object("--golden", tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")


def test_golden_folder_must_hold_what_it_lists(tmp_path: Path) -> None:
    """A folder without golden objects, or with one that no vector names, does not pass for a valid one."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "vectors.json").write_text('{"zero_nodes":[],"locks":[],"streams":[],"objects":[]}', "utf-8")
    assert_refused(read_object("--golden", tmp_path), 1, "names no object")
    (tmp_path / "vectors.json").write_text("[]", "utf-8")
    assert_refused(read_object("--golden", tmp_path), 2, "cannot be read")
    vectors = json.loads((DATA / "vectors.json").read_text("utf-8"))
    for golden in GOLDEN:
        (tmp_path / "objects" / golden.name).write_bytes(golden.data)
    dropped = vectors["objects"].pop()["file"]
    (tmp_path / "vectors.json").write_text(json.dumps(vectors), "utf-8")
    assert_refused(read_object("--golden", tmp_path), 1, dropped)


def test_stream_is_put_together(tmp_path: Path) -> None:
    """Objects of one stream in any order give its bytes, in a file or on standard output."""
    whole = content({"pattern": 140000})
    files = [SEVERAL[2].path, SEVERAL[0].path, SEVERAL[1].path]
    out = tmp_path / "out"
    done = read_object(*asked(SEVERAL[0], number=False), *files, "--extract", out)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"all objects of the stream are here" in done.stdout
    assert out.read_bytes() == whole
    done = read_object(*asked(SEVERAL[0], number=False), "--extract", "-", *files)
    assert (done.returncode, done.stdout) == (0, whole)


def test_stream_with_an_object_missing_or_twice_is_refused(tmp_path: Path) -> None:
    """Nothing is written unless every object of the stream is given exactly once; checking a part of them is fine."""
    first, second, third = (golden.path for golden in SEVERAL)
    options = asked(SEVERAL[0], number=False)
    out = tmp_path / "out"
    assert_refused(read_object(*options, "--extract", out, second, third), 1, "object 0 is missing")
    assert_refused(read_object(*options, "--extract", out, first, third), 1, "object 1 is missing")
    assert_refused(read_object(*options, "--extract", "-", first, second), 1, "object 2 is missing")
    assert_refused(read_object(*options, "--extract", out, first, second, third, third), 1, "given twice")
    assert os.listdir(tmp_path) == []
    done = read_object(*options, "--json", first, third)
    assert (done.returncode, json.loads(done.stdout)["complete"]) == (0, False)


def test_lock_from_a_file(tmp_path: Path) -> None:
    """The lock may come from a file, whose last line may end with a newline."""
    lock = tmp_path / "lock.json"
    for text in (LOCK, LOCK + "\n"):
        lock.write_text(text, "utf-8")
        golden = BY_NAME["padded-path-4"]
        done = read_object("--stream", golden.stream, "--lock", lock, "--number", "0x4", golden.path)
        assert (done.returncode, done.stderr) == (0, b"")
    for text in (LOCK + "\n\n", LOCK.replace("demo", "d\u00e9mo"), LOCK + " " * 5000, ""):
        lock.write_text(text, "utf-8")
        with pytest.raises(READER.Misused):
            READER.read_lock(str(lock))


# --- what is corrupt


@each_golden
def test_every_flipped_header_byte_is_refused(golden: Golden) -> None:
    """Whichever bit of a header is flipped, the object is refused, with its number known beforehand or not."""
    data = bytearray(golden.data)
    for position in range(golden.header_length):
        for bit in range(8):
            data[position] ^= 1 << bit
            for number in (golden.number, None):
                assert verdict(data, golden.stream, golden.lock, number) is not None, (position, bit, number)
            data[position] ^= 1 << bit
    assert verdict(data, golden.stream, golden.lock, golden.number) is None


@each_golden
def test_flipped_payload_bytes_are_refused(golden: Golden) -> None:
    """A flipped bit anywhere in the bytes of the stream is found by the node of its miniblock."""
    chance = random.Random(golden.name)
    data = bytearray(golden.data)
    last = len(data) - 1
    sample = {golden.header_length, last, *(chance.randint(golden.header_length, last) for _ in range(24))}
    for position in sorted(sample):
        data[position] ^= 1 << chance.randrange(8)
        reason = verdict(data, golden.stream, golden.lock, golden.number)
        assert reason is not None, position
        assert "do not match its node" in reason
        data[position] = golden.data[position]


@each_golden
def test_wrong_length_is_refused(golden: Golden) -> None:
    """An object that is cut short anywhere, or goes on after its end, is refused."""
    whole, header = golden.data, golden.header_length
    for length in {*range(header + 2), len(whole) - 1, len(whole) // 2} - {len(whole)}:
        assert verdict(whole[:length], golden.stream, golden.lock, golden.number) is not None, length
    for more in (b"\0", whole[-1:], whole):
        assert verdict(whole + more, golden.stream, golden.lock, golden.number) is not None


def test_swapped_objects_are_refused() -> None:
    """No golden object passes for another one."""
    for golden in GOLDEN:
        for other in GOLDEN:
            if other is not golden:
                assert verdict(other.data, golden.stream, golden.lock, golden.number) is not None


def test_exchanged_parts_are_refused() -> None:
    """Header and bytes of different objects of one stream make no object, nor do miniblocks in another order."""
    first, second, _ = SEVERAL
    mixed = first.data[: first.header_length] + second.data[second.header_length :]
    assert verdict(mixed, first.stream, first.lock, 0) is not None
    head, body = first.data[: first.header_length], first.data[first.header_length :]
    reordered = head + body[16384:32768] + body[:16384] + body[32768:]
    assert verdict(reordered, first.stream, first.lock, 0) is not None
    nodes = head[:96] + head[132:168] + head[96:132] + head[168:]
    reason = verdict(nodes + reordered[len(head) :], first.stream, first.lock, 0)
    assert reason is not None
    assert "do not lead to the root" in reason


@each_golden
def test_wrong_number_stream_and_lock_are_refused(golden: Golden) -> None:
    """An object is refused under another number, another stream's id, the id's other kind, or another lock."""
    for number in (golden.number + 1, 7, 2**32 - 2):
        assert verdict(golden.data, golden.stream, golden.lock, number) is not None
    kind = "fc" if golden.stream.startswith("ff") else "ff"
    for stream in (kind + golden.stream[2:], golden.stream[:-1] + ("0" if golden.stream[-1] != "0" else "1")):
        assert verdict(golden.data, stream, golden.lock, golden.number) is not None
    for lock in OTHER_LOCKS:
        assert verdict(golden.data, golden.stream, lock, golden.number) is not None


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def file_id(opening: bytes) -> bytes:
    return b"\xff" + sha256(b"entrepot.file\0" + opening)[:31]


def make(data: bytes, m: int, o: int | None, hidden: dict[tuple[int, int], bytes]) -> tuple[str, str, list[bytes]]:
    """Stream id, lock and objects of ``data``, written down from the definitions without any cleverness.

    ``m`` and ``o`` are those of the document, with None for ``object`` 0. ``hidden`` gives nodes other values than
    they have, by (level, position), as the mischievous creator of a stream might.
    """
    leaves = [data[at : at + 16384] for at in range(0, len(data), 16384)]
    depth = next(depth for depth in range(64) if 2**depth >= len(leaves))

    def node(level: int, position: int) -> bytes:
        if (level, position) in hidden:
            return hidden[level, position]
        if level == 0:
            return sha256(leaves[position]) if position < len(leaves) else bytes(32)
        return sha256(node(level - 1, 2 * position) + node(level - 1, 2 * position + 1))

    miniblock = 16384 * 2**m
    blocks = [data[at : at + miniblock] for at in range(0, len(data), miniblock)]
    per_object = len(blocks) if o is None else 2**o
    level = depth if o is None else min(m + o, depth)
    opening = len(data).to_bytes(8, "big") + node(depth, 0)
    stream = file_id(opening)
    objects = []
    for number in range(-(-len(blocks) // per_object)):
        mine = range(number * per_object, min((number + 1) * per_object, len(blocks)))
        parts = [b"\x89ENTRPT\n", bytes([1, 0, 14 + m, 255 if o is None else o, 0, 0, 0, 0]), stream, opening]
        parts += [number.to_bytes(4, "big"), len(mine).to_bytes(4, "big")]
        for block in mine:
            parts += [len(blocks[block]).to_bytes(4, "big"), node(min(m, depth), block)]
        parts += [node(level + j, number >> j ^ 1) for j in range(depth - level)]
        objects.append(b"".join([*parts, *(blocks[block] for block in mine)]))
    size = 0 if o is None else miniblock * 2**o
    lock = f'{{"channel":"demo","codec":"none","format":1,"miniblock":{miniblock},"object":{size}}}'
    return stream.hex(), lock, objects


@pytest.mark.parametrize("o", [0, 1, 3, None])
@pytest.mark.parametrize("m", [0, 1, 3])
def test_other_geometries_are_valid(m: int, o: int | None) -> None:
    """Objects of many lengths under many locks are valid, whether or not they end at a leaf, miniblock or object."""
    for leaves in (1, 2, 3, 4, 5, 8, 9, 16, 17, 31):
        for length in (leaves * 16384 - 16383, leaves * 16384 - 1, leaves * 16384):
            stream, lock, objects = make(content({"pattern": length}), m, o, {})
            for number, data in enumerate(objects):
                assert verdict(data, stream, lock, number) is None, (length, number)


@pytest.mark.parametrize(
    ("leaves", "hidden"),
    [(17, (2, 5)), (17, (3, 3)), (19, (2, 5)), (20, (2, 5)), (20, (3, 3)), (24, (3, 3))],
)
def test_hidden_values_in_the_padding_of_the_path_are_refused(leaves: int, hidden: tuple[int, int]) -> None:
    """A path that leads to the root is refused all the same when it does not pad with Z past the end."""
    stream, lock, objects = make(content({"pattern": leaves * 16384}), 0, 2, {hidden: sha256(b"hidden")})
    level, position = hidden
    siblings = [number for number in range(len(objects)) if number >> (level - 2) ^ 1 == position]
    assert siblings
    for number in siblings:
        reason = verdict(objects[number], stream, lock, number)
        assert reason is not None
        assert f"level {level} lies past the end and is not padding" in reason


@pytest.mark.parametrize(
    ("leaves", "m", "o", "hidden"), [(3, 1, 2, (0, 3)), (5, 0, 3, (0, 7)), (5, 0, 3, (1, 3)), (5, 0, None, (0, 5))]
)
def test_hidden_values_in_the_padding_below_are_refused(
    leaves: int, m: int, o: int | None, hidden: tuple[int, int]
) -> None:
    """A stream with other values than Z past the end of a miniblock, or of an object, has no valid object."""
    data = content({"pattern": leaves * 16384})
    stream, lock, objects = make(data, m, o, {hidden: sha256(b"hidden")})
    assert stream != make(data, m, o, {})[0]
    assert verdict(objects[0], stream, lock, 0) is not None


def test_object_after_the_last_one_is_refused() -> None:
    """A header without miniblocks, numbered as if a full stream went on, is no object."""
    stream, lock, objects = make(content({"pattern": 8 * 16384}), 0, 2, {})
    header = objects[1][:88] + (2).to_bytes(4, "big") + bytes(4) + objects[1][96 + 36 * 4 : 96 + 36 * 4 + 32]
    for number in (2, None):
        for length in (96, len(header)):
            assert verdict(header[:length], stream, lock, number) is not None


@pytest.mark.parametrize(("size", "most"), [(0, 2**20 * 16384), (16384, (2**32 - 1) * 16384)])
def test_limits_of_the_geometry(size: int, most: int) -> None:
    """A stream just within the bounds on miniblocks and objects has a geometry; one byte more has none."""
    lock = READER.parse_lock(LOCK.replace("65536", str(size)))
    assert READER.geometry(most, lock).blocks == most // 16384
    with pytest.raises(READER.Corrupt):
        READER.geometry(most + 1, lock)


def test_file_that_shrinks_is_refused() -> None:
    """A file that ends before the size it had when it was opened is corrupt, wherever it ends."""
    golden = BY_NAME["two-leaves-0"]

    class Shrinking(io.BytesIO):
        def seek(self, position: int, whence: int = 0, /) -> int:
            return len(golden.data) if whence == os.SEEK_END else super().seek(position)

    stream, lock = READER.parse_stream(golden.stream), READER.parse_lock(golden.lock)
    for length in (0, 95, 96, 167, 168, len(golden.data) - 1):
        with pytest.raises(READER.Corrupt, match="early"):
            READER.verify(Shrinking(golden.data[:length]), stream, lock, 0)


class Watched(io.BytesIO):
    """A file that remembers how much was asked of it."""

    asked = 0

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert size >= 0
        self.asked += size
        return super().read(size)


@pytest.mark.parametrize("length", [0, 2**44, 2**50, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("size", [16384, 16384 * 2**20, 0])
def test_lengths_are_not_believed(length: int, size: int) -> None:
    """A stream id that fits a length out of all proportion makes the reader ask for nothing beyond 96 bytes."""
    opening = length.to_bytes(8, "big") + bytes(32)
    stream = file_id(opening)
    lock = f'{{"channel":"demo","codec":"none","format":1,"miniblock":16384,"object":{size}}}'
    order = {16384: 0, 16384 * 2**20: 20, 0: 255}[size]
    for count in (1, 2**20, 2**32 - 1):
        data = BY_NAME["one-byte-0"].data
        data = data[:11] + bytes([order]) + data[12:92] + count.to_bytes(4, "big") + data[96:]
        file = Watched(data[:16] + stream + opening + data[88:])
        with pytest.raises(READER.Corrupt):
            READER.verify(file, stream, READER.parse_lock(lock), 0)
        assert file.asked == 96


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"", "too few"),
        (lambda data: data[:95], "too few"),
        (lambda data: data[:-1], "instead of"),
        (lambda data: data + b"\0", "instead of"),
        (lambda data: b"\0" + data[1:], "not an entrepot object"),
        (lambda data: data[:88] + b"\0\0\0\x01" + data[92:], "number"),
        (lambda data: data[:140] + bytes([data[140] ^ 1]) + data[141:], "root"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "node"),
    ],
    ids=["empty", "cut-header", "cut", "longer", "magic", "number", "path", "payload"],
)
def test_corrupt_file_writes_nothing(tmp_path: Path, change: Any, reason: str) -> None:
    """For a corrupt file the program ends with 1 and one sentence that names it, and writes no byte of it."""
    golden = SEVERAL[0]
    bad = tmp_path / "bad"
    bad.write_bytes(change(golden.data))
    for out in (tmp_path / "out", "-"):
        done = read_object(*asked(golden), "--extract", out, bad)
        assert_refused(done, 1, reason)
        assert str(bad) in done.stderr.decode()
    done = read_object(*asked(golden, number=False), "--extract", "-", SEVERAL[2].path, SEVERAL[1].path, bad)
    assert_refused(done, 1, "")
    assert os.listdir(tmp_path) == ["bad"]


def test_file_that_changes_after_verification_is_refused(tmp_path: Path) -> None:
    """What is written is verified as it is read, so a file that changed since leaves nothing behind."""
    golden = BY_NAME["one-byte-0"]
    changing = tmp_path / "object"
    changing.write_bytes(golden.data)
    stream, lock = READER.parse_stream(golden.stream), READER.parse_lock(golden.lock)
    with changing.open("rb") as file:
        header = READER.verify(file, stream, lock, 0)
    changing.write_bytes(golden.data[:-1] + b"b")
    with pytest.raises(READER.Corrupt):
        READER.write_all(str(tmp_path / "out"), READER.plain_bytes([(str(changing), header)]))
    assert os.listdir(tmp_path) == ["object"]


# --- what is wrong usage


@pytest.mark.parametrize(
    "lock",
    [
        LOCK.replace(",", ", "),
        LOCK.replace('"format":1', '"format":true'),
        LOCK.replace('"format":1', '"format":2'),
        LOCK.replace("none", "gzip"),
        LOCK.replace("demo", "Demo"),
        LOCK.replace("demo", "d" * 33),
        LOCK.replace("demo", "démo"),
        LOCK.replace("16384", "16385"),
        LOCK.replace("16384", "8192"),
        LOCK.replace("16384", "016384"),
        LOCK.replace("16384", "134217728"),
        LOCK.replace("65536", "49152"),
        LOCK.replace("65536", "8192"),
        LOCK.replace("65536", str(16384 * 2**21)),
        LOCK.replace("65536", "65536.0"),
        LOCK.replace("}", ',"x":1}'),
        LOCK + "\n",
        '{"codec":"none","channel":"demo","format":1,"miniblock":16384,"object":65536}',
        "{",
        "no such file",
    ],
)
def test_lock_in_another_spelling_is_wrong_usage(lock: str) -> None:
    """A lock that is not exactly its canonical document is refused before any object is opened."""
    with pytest.raises(READER.Misused):
        READER.read_lock(lock)


def test_lock_at_its_limits() -> None:
    """The smallest and the largest sizes that a lock may pin are accepted."""
    for miniblock, size in ((2**14, 0), (2**14, 2**14), (2**14, 2**34), (2**26, 2**26), (2**26, 2**46)):
        document = f'{{"channel":"a","codec":"none","format":1,"miniblock":{miniblock},"object":{size}}}'
        assert READER.parse_lock(document).id == hashlib.sha256(document.encode()).hexdigest()[:16]


@pytest.mark.parametrize("text", ["-1", "", "04", "00000004", "4294967295", "0xffffffff", "1_0", "٤", "1.0", "0X4"])
def test_number_in_another_spelling_is_wrong_usage(text: str) -> None:
    """A number that could be read in two ways, or is the index's, is refused."""
    with pytest.raises(READER.Misused):
        READER.parse_number(text)


def test_wrong_usage(tmp_path: Path) -> None:
    """Questions that make no sense end with 2: bad ids, kinds without objects, no file, two ways at once."""
    golden = SEVERAL[0]
    for stream in (golden.stream[:-1], golden.stream.upper(), "00" + golden.stream[2:], "fe" + golden.stream[2:]):
        assert_refused(read_object("--stream", stream, "--lock", LOCK, golden.path), 2, "")
    options = asked(golden, number=False)
    assert_refused(read_object(*options, tmp_path / "absent"), 2, "absent cannot be opened")
    assert_refused(read_object(*options, tmp_path), 2, "no regular file")
    assert_refused(read_object("--golden", tmp_path), 2, "vectors.json cannot be opened")
    for wrong in (
        [],
        options,
        [golden.path],
        ["--golden", DATA, golden.path],
        [*options, "--number", "0", golden.path, SEVERAL[1].path],
    ):
        done = read_object(*wrong)
        assert (done.returncode, done.stdout) == (2, b"")


def test_existing_file_is_kept(tmp_path: Path) -> None:
    """The program never writes over a file, least of all over the object that it reads."""
    kept = tmp_path / "object"
    kept.write_bytes(BY_NAME["one-byte-0"].data)
    done = read_object(*asked(BY_NAME["one-byte-0"]), "--extract", kept, kept)
    assert_refused(done, 2, "exists already")
    done = read_object(*asked(BY_NAME["one-byte-0"]), "--extract", tmp_path / "absent" / "out", kept)
    assert_refused(done, 2, "absent")
    with pytest.raises(READER.Misused):  # it appeared while bytes were being verified
        READER.write_all(str(kept), [b"bytes"])
    assert kept.read_bytes() == BY_NAME["one-byte-0"].data
    assert os.listdir(tmp_path) == ["object"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_does_not_hang(tmp_path: Path) -> None:
    """A named pipe in place of an object is refused at once instead of being waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert_refused(read_object(*asked(SEVERAL[0]), pipe), 2, "no regular file")


def test_script_is_independent() -> None:
    """The script parses as Python 3.9 and imports nothing but standard modules that this version has."""
    tree = ast.parse(SCRIPT.read_text("utf-8"), feature_version=(3, 9))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert "hashlib" in imported
    assert imported - {"__future__"} <= set(sys.stdlib_module_names)
    assert not {"importlib", "runpy", "subprocess", "tomllib"} & imported


def test_worked_example_of_the_document() -> None:
    """The bytes that docs/format.md shows are those of the golden object it names."""
    shown = bytearray()
    for line in DOCUMENT.read_text("utf-8").splitlines():
        row = re.fullmatch(r"    (?:[0-9a-f]{3}|   )  ((?:[0-9a-f]{2} )*[0-9a-f]{2})(?:  .*)?", line)
        if row is not None:
            offset = line[4:7].strip()
            assert not offset or int(offset, 16) == len(shown)
            shown += bytes.fromhex(row[1])
    assert bytes(shown) == BY_NAME["padded-path-4"].data
