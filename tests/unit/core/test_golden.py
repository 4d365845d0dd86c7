"""Golden vectors: what no release may change."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from entrepot.core.format import encode_header, header_length, verify_object
from entrepot.core.geometry import Geometry
from entrepot.core.identifiers import Opening, StreamId, StreamKind, feed_id, result_id
from entrepot.core.keys import object_key, parse_object_key
from entrepot.core.lock import SchemaLock
from entrepot.core.merkle import StreamHasher, zero_node
from entrepot.core.uri import StreamUri

# The table of the design, written out here as well: vectors.json is made by the code under test.
DESIGN = [
    (
        {"repeat": "", "length": 0},
        "00" * 32,
        "ffe7b33958dd5ce7079aee57184e33f68cf5d8c49856ab9828530a086d94d634",
    ),
    (
        {"repeat": "61", "length": 1},
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
        "ffbccc67723a661a8341a2a5c39e27523a23247db89721401db43e5e6268229b",
    ),
    (
        {"repeat": "00", "length": 16384},
        "4fe7b59af6de3b665b67788cc2f99892ab827efae3a467342b3bb4e3bc8e5bfe",
        "ff84aa7130c86c71fafd01c7e9743021461baf460d845629bfaf6f63b7082f5f",
    ),
    (
        {"pattern": 16385},
        "7e40fa9dda2684d438e1b3d5ce6ecd00317d850c5d652a56e0ca13e6188f2d7e",
        "ff465987ac241ab132a5155162646d4be2d863a726b91f9885b31449886235bd",
    ),
    (
        {"pattern": 3000000},
        "19bec6b70729264a6e5468d94c9faf373671240180d07cc45e59777cdcb93c27",
        "ff55a951c37248e968155b15fd1625dba004ccb17bf1d481fac8755d839fd0d6",
    ),
]


@pytest.mark.parametrize(("recipe", "root", "stream"), DESIGN)
@pytest.mark.parametrize("level", [0, 6])
def test_roots_and_ids_of_the_design(content, recipe, root, stream, level) -> None:
    """The five streams of the design have their root and id, whatever the miniblock."""
    hasher = StreamHasher(level)
    hasher.update(content(recipe))
    opening = hasher.finish().opening
    assert (opening.root.hex(), str(opening.stream_id())) == (root, stream)


def test_lock_id_of_the_design() -> None:
    """The design's example document is canonical and has its id."""
    document = '{"channel":"demo","codec":"none","format":1,"miniblock":1048576,"object":4194304}'
    assert SchemaLock("demo").canonical() == document.encode()
    assert SchemaLock.parse(document).hex == "4ec2aebd7769b2f6"


def test_vectors_of_streams(vectors, content) -> None:
    """Lengths, digests, openings and ids of all vectors come out again."""
    for vector in vectors["streams"]:
        hasher = StreamHasher(6, sha256=True)
        hasher.update(content(vector["content"]))
        found = hasher.finish()
        assert found.opening == Opening.decode(bytes.fromhex(vector["opening"]))
        assert found.opening.length == vector["length"]
        assert found.opening.root.hex() == vector["root"]
        assert found.sha256 is not None
        assert found.sha256.hex() == vector["sha256"]
        assert str(found.opening.stream_id()) == vector["file"]
        assert str(found.opening.stream_id(StreamKind.TREE)) == vector["tree"]


def test_vectors_of_names(vectors) -> None:
    """Padding nodes, feed ids, result ids, lock ids and URIs come out again."""
    assert [zero_node(level).hex() for level in range(8)] == vectors["zero_nodes"]
    for feed in vectors["feeds"]:
        assert str(feed_id(bytes.fromhex(feed["public_key"]), feed["name"])) == feed["id"]
    for result in vectors["results"]:
        described = {key: value for key, value in result.items() if key != "id"}
        assert str(result_id(**described)) == result["id"]
    for lock in vectors["locks"]:
        assert SchemaLock.parse(lock["document"]).hex == lock["id"]
    for uri in vectors["uris"]:
        parsed = StreamUri.parse(uri["uri"])
        assert str(parsed) == uri["uri"]
        assert parsed == StreamUri(uri["channel"], uri["hub"], StreamId.parse(uri["stream"]), uri["name"])


def test_golden_objects(vectors, content, data_folder) -> None:
    """Each golden object verifies, holds its content, and is encoded to the same bytes again."""
    for golden in vectors["objects"]:
        lock, stream, number = (
            SchemaLock.parse(golden["lock"]),
            StreamId.parse(golden["stream"]),
            golden["number"],
        )
        whole = (data_folder / golden["file"]).read_bytes()
        assert (len(whole), sha256(whole).hexdigest()) == (golden["object_length"], golden["sha256"])
        header = verify_object(whole, stream=stream, lock=lock, number=number)
        data = content(golden["content"])
        offset = golden["offset_in_stream"]
        payload = whole[header.length :]
        assert payload == data[offset : offset + len(payload)]
        hasher = StreamHasher(lock.level)
        hasher.update(data)
        found = hasher.finish()
        assert encode_header(stream, found.opening, lock, number, found.nodes) == whole[: header.length]
        geometry = Geometry(len(data), lock)
        assert geometry.object_span(number) == (offset, len(payload))
        assert geometry.object_count == golden["objects_of_stream"]
        assert header_length(len(data), number, lock) == golden["header_length"] == header.length
        assert geometry.object_length(number) == len(whole) == header.object_length
        assert object_key("some/prefix", lock.id, stream, number) == golden["key"]
        assert parse_object_key("some/prefix", golden["key"]) == (lock.id, stream, number)


def test_golden_data_is_guarded(data_folder) -> None:
    """The generator makes exactly the files there are, and overwrites none without being forced."""
    script = str(Path(data_folder).parents[1] / "scripts" / "make-golden")
    same = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (same.returncode, same.stderr) == (0, "")
    before = {path: path.stat().st_mtime_ns for path in data_folder.rglob("*") if path.is_file()}
    refused = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert before == {path: path.stat().st_mtime_ns for path in data_folder.rglob("*") if path.is_file()}
