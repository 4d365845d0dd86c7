"""The codec of miniblocks: what is packed, and that nothing is unpacked that is not exactly one honest frame."""

from __future__ import annotations

import secrets
import struct
import tracemalloc
from typing import Any

import pytest
import zstandard

from entrepot.core.codec import SAMPLE, Packer, pays, samples, unpack
from entrepot.core.errors import Corrupt

TEXT = b"The quick brown fox jumps over the lazy dog. " * 2000


def frame(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(data)


def test_only_what_saves_more_than_five_percent_is_packed() -> None:
    """Packing is worth it from the first byte below 95 %, and is not done otherwise."""
    assert [pays(size, 1000) for size in (949, 950, 1000)] == [True, False, False]
    packer = Packer()
    packed = packer.pack(TEXT)
    assert packed is not None
    assert len(packed) < len(TEXT) // 10
    assert unpack(packed, len(TEXT)) == TEXT
    assert packer.pack(secrets.token_bytes(100_000)) is None
    assert packer.pack(b"a") is None
    assert packer.pack(secrets.token_bytes(93_000) + bytes(7000)) is not None
    assert packer.pack(secrets.token_bytes(97_000) + bytes(3000)) is None


def test_samples_tell_random_from_what_compresses() -> None:
    """Random bytes are never promising, text and zeros are; small miniblocks are tried without a sample."""
    packer = Packer()
    assert not any(packer.promising(secrets.token_bytes(SAMPLE)) for _ in range(50))
    assert packer.promising(TEXT[:SAMPLE])
    assert packer.promising(bytes(SAMPLE))
    assert samples(SAMPLE) == samples(4 * SAMPLE) == ()
    assert samples(1 << 20) == (0, 1 << 19)


def test_one_version_packs_the_same_bytes() -> None:
    """A packer has no memory: the same miniblock is the same frame, whatever it packed before."""
    first, other = Packer(), Packer()
    first.pack(bytes(5000))
    assert first.pack(TEXT) == other.pack(TEXT) == first.pack(memoryview(TEXT))


@pytest.mark.parametrize(
    "wrong",
    {
        "no frame": b"nonsense" * 5,
        "nothing": b"",
        "magic alone": b"\x28\xb5\x2f\xfd",
        "cut": frame(TEXT)[:-1],
        "a byte more": frame(TEXT) + b"\0",
        "two frames": frame(TEXT[:100]) + frame(TEXT[100:]),
        "an empty frame more": frame(TEXT) + frame(b""),
        "a skippable frame first": b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"skip" + frame(TEXT),
        "a skippable frame after": frame(TEXT) + b"\x50\x2a\x4d\x18" + struct.pack("<I", 0),
        "shorter": frame(TEXT[:-1]),
        "longer": frame(TEXT + b"x"),
        "without its length": frame(TEXT, write_content_size=False),
        "a checksum": frame(TEXT, write_checksum=True),
        "another checksum": frame(TEXT, write_checksum=True)[:-4] + b"\0\0\0\0",
    }.items(),
    ids=lambda item: item[0] if isinstance(item, tuple) else None,
)
def test_what_is_not_exactly_one_frame_of_that_length_is_refused(wrong: tuple[str, bytes]) -> None:
    """Cut, extended, joined, skippable or of another length: corrupt, and no other error."""
    with pytest.raises(Corrupt):
        unpack(wrong[1], len(TEXT))


def test_a_frame_with_a_dictionary_is_refused() -> None:
    """A frame that names a dictionary is not unpacked, nor is one that needs one in secret."""
    words = zstandard.ZstdCompressionDict(TEXT[:4096] + secrets.token_bytes(4096), zstandard.DICT_TYPE_RAWCONTENT)
    data = words.as_bytes()[4000:8000]
    secret = zstandard.ZstdCompressor(dict_data=words).compress(data)
    with pytest.raises(Corrupt):
        unpack(secret, len(data))
    named = bytes([*secret[:4], secret[4] | 1, *secret[5:7], 7, *secret[7:]])
    with pytest.raises(Corrupt):
        unpack(named, len(data))


def test_a_bomb_takes_no_memory() -> None:
    """A frame of a gigabyte of zeros, whether it says so or claims the miniblock's length, is refused at the cost of
    one miniblock."""
    whole = zstandard.ZstdCompressor(level=1).compressobj(size=1 << 30)
    parts = [whole.compress(bytes(1 << 20)) for _ in range(1 << 10)]
    honest = b"".join((*parts, whole.flush()))
    said = zstandard.get_frame_parameters(honest)
    assert said.content_size == 1 << 30
    size = zstandard.frame_header_size(honest)
    # The same blocks behind a header that says: one segment, 65536 + 256 bytes.
    lying = b"\x28\xb5\x2f\xfd" + bytes([0x60]) + struct.pack("<H", 65536 - 256) + honest[size:]
    assert zstandard.get_frame_parameters(lying).content_size == 65536
    tracemalloc.start()
    try:
        for bomb, length in ((honest, 65536), (lying, 65536)):
            with pytest.raises(Corrupt):
                unpack(bomb, length)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
