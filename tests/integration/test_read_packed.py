"""The independent reader and objects of codec zstd: it believes what the project's reader believes, and no more."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.integration.test_read_object import READER, SCRIPT, content, verdict

from entrepot.core.errors import Corrupt
from entrepot.core.format import decode_header, verify_object, with_stored_lengths
from entrepot.core.identifiers import StreamId
from entrepot.core.lock import SchemaLock

DATA = Path(__file__).resolve().parents[1] / "data" / "zstd"
VECTORS: list[dict[str, Any]] = json.loads((DATA / "vectors.json").read_bytes())["objects"]


def run(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, check=False, timeout=60)


def believed(data: bytes, told: dict[str, Any]) -> bool:
    """Whether the project's reader takes the object."""
    try:
        stream, lock = StreamId.parse(told["stream"]), SchemaLock.parse(told["lock"])
        verify_object(data, stream=stream, lock=lock, number=told["number"])
    except Corrupt:
        return False
    return True


def test_golden_objects_are_valid() -> None:
    """Every golden object of codec zstd is valid by the document alone, its plain bytes being its content's."""
    done = run("--golden", DATA)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("told", VECTORS, ids=lambda told: Path(told["file"]).name)
def test_golden_objects_verify(told: dict[str, Any]) -> None:
    """The project's reader finds in each golden object what its vector says."""
    whole = (DATA / told["file"]).read_bytes()
    lock = SchemaLock.parse(told["lock"])
    header = verify_object(whole, stream=StreamId.parse(told["stream"]), lock=lock, number=told["number"])
    assert (header.codec, list(header.stored_lengths)) == ("zstd", told["stored_lengths"])
    assert (header.length, header.object_length) == (told["header_length"], told["object_length"])
    assert header.opening.length == told["content"].get("length", told["content"].get("pattern"))


def test_a_stream_is_put_together(tmp_path: Path) -> None:
    """The plain bytes of packed objects come out whole."""
    told = [one for one in VECTORS if one["file"].startswith("objects/mixed-")]
    assert {a == b for one in told for a, b in zip(one["stored_lengths"], [16384] * 4, strict=False)} == {True, False}
    out = tmp_path / "out"
    files = [DATA / one["file"] for one in reversed(told)]
    done = run("--stream", told[0]["stream"], "--lock", told[0]["lock"], "--extract", out, *files)
    assert (done.returncode, done.stderr) == (0, b"")
    runs = READER.content(told[0]["content"])
    assert out.read_bytes() == runs
    assert content({"pattern": 251}) == bytes(i * 7 % 251 for i in range(251))


@pytest.mark.parametrize("told", VECTORS, ids=lambda told: Path(told["file"]).name)
def test_both_readers_agree_on_changed_objects(told: dict[str, Any]) -> None:
    """Whatever byte of a packed object is changed, wherever it is cut or extended, both readers say the same of it."""
    whole, dice = (DATA / told["file"]).read_bytes(), random.Random(told["file"])
    places = range(len(whole)) if len(whole) < 600 else sorted(dice.sample(range(len(whole)), 400))
    changed = [whole[:at] + bytes([whole[at] ^ dice.randint(1, 255)]) + whole[at + 1 :] for at in places]
    changed += [whole[:-1], whole + b"\0", whole[: told["header_length"]], b""]
    refused = 0
    for data in changed:
        wrong = verdict(data, told["stream"], told["lock"], told["number"])
        assert (wrong is None) == believed(data, told), wrong
        refused += wrong is not None
    assert refused >= 0.98 * len(changed)


def test_both_readers_refuse_hostile_frames() -> None:
    """Bombs, joined, cut, extended and unsized frames, dictionaries and checksums: neither reader takes them."""
    told = next(one for one in VECTORS if one["file"] == "objects/repeating-0")
    stream, lock = StreamId.parse(told["stream"]), SchemaLock.parse(told["lock"])
    whole, plain = (DATA / told["file"]).read_bytes(), content(told["content"])[:16384]
    header = decode_header(whole[: told["header_length"]], stream=stream, lock=lock, number=0)

    def frame(data: bytes, **options: Any) -> bytes:
        return zstandard.ZstdCompressor(level=1, **options).compress(data)

    def made(first: bytes) -> bytes:
        lengths = [len(first), *header.stored_lengths[1:]]
        return with_stored_lengths(header, lengths) + first + whole[header.offsets[1] :]

    assert verdict(made(frame(plain)), told["stream"], told["lock"], 0) is None
    hostile = {
        "bomb": frame(bytes(100 << 20)),
        "two frames": frame(plain[:100]) + frame(plain[100:]),
        "skippable": frame(plain) + b"\x50\x2a\x4d\x18\x00\x00\x00\x00",
        "cut": frame(plain)[:-1],
        "more": frame(plain) + b"!",
        "unsized": frame(plain, write_content_size=False),
        "checksum": frame(plain, write_checksum=True),
        "other": frame(bytes(16384)),
        "longer": frame(plain + b"!"),
        "empty": b"\x28\xb5\x2f\xfd",
    }
    for name, first in hostile.items():
        assert verdict(made(first), told["stream"], told["lock"], 0) is not None, name
        assert not believed(made(first), told), name
