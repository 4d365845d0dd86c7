"""Sealed secrets: opened by the right key in the right place only, and told apart when they do not open."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import Corrupt, Denied, InvalidInput
from entrepot_hub.core.sealing import RESEAL_RANDOM, SEAL_RANDOM, MasterKey, reseal, seal, unseal

KEY, OTHER = MasterKey(b"k" * 32), MasterKey(b"o" * 32)
BLOB = seal(b"secret", key=KEY, associated=b"demo", random=bytes(range(SEAL_RANDOM)))


@given(st.binary(max_size=200), st.binary(max_size=40), st.binary(min_size=SEAL_RANDOM, max_size=SEAL_RANDOM))
def test_what_is_sealed_opens(secret: bytes, place: bytes, random: bytes) -> None:
    """The same key and place give the secret back."""
    assert unseal(seal(secret, key=KEY, associated=place, random=random), key=KEY, associated=place) == secret


def test_the_wrong_key_or_place_is_denied() -> None:
    """A blob that was moved, or another master key: denied, with a hint."""
    for key, place in ((OTHER, b"demo"), (KEY, b"other")):
        with pytest.raises(Denied) as caught:
            unseal(BLOB, key=key, associated=place)
        assert caught.value.hint


@pytest.mark.parametrize("position", range(len(BLOB)))
def test_every_altered_byte_is_noticed(position: int) -> None:
    """No byte of a blob can change unnoticed."""
    altered = bytearray(BLOB)
    altered[position] ^= 1
    with pytest.raises((Denied, Corrupt)):
        unseal(bytes(altered), key=KEY, associated=b"demo")


@pytest.mark.parametrize("blob", [b"", BLOB[:50], BLOB[:-1], BLOB + b"x", b"\x02" + BLOB[1:], bytes(2 << 20)])
def test_a_damaged_blob_is_corrupt(blob: bytes) -> None:
    """Cut, lengthened, of another version or far too long."""
    with pytest.raises(Corrupt):
        unseal(blob, key=KEY, associated=b"demo")


def test_a_new_master_key_opens_what_was_sealed_again() -> None:
    """Rotation changes who can open it, not what is in it."""
    again = reseal(BLOB, old=KEY, new=OTHER, associated=b"demo", random=os.urandom(RESEAL_RANDOM))
    assert unseal(again, key=OTHER, associated=b"demo") == b"secret"
    with pytest.raises(Denied):
        unseal(again, key=KEY, associated=b"demo")
    with pytest.raises(Denied):
        reseal(BLOB, old=OTHER, new=KEY, associated=b"demo", random=os.urandom(RESEAL_RANDOM))


def test_a_master_key_is_never_shown() -> None:
    """Neither in its repr nor in the error about a bad one."""
    text = "ab" * 32
    key = MasterKey.parse(f" {text}\n")
    assert key.raw == bytes.fromhex(text)
    assert "ab" not in repr(key).lower().replace("masterkey", "")
    assert len(key.fingerprint) == 8
    assert key.fingerprint != OTHER.fingerprint
    for bad in (text[:-1], text + "00", "z" * 64):
        with pytest.raises(InvalidInput) as caught:
            MasterKey.parse(bad)
        assert bad not in str(caught.value)
    with pytest.raises(InvalidInput):
        MasterKey(b"short")


def test_sealing_wants_its_randomness() -> None:
    """Too few random bytes, or a secret too long, are refused before anything is sealed."""
    with pytest.raises(InvalidInput):
        seal(b"", key=KEY, associated=b"", random=bytes(SEAL_RANDOM - 1))
    with pytest.raises(InvalidInput):
        seal(bytes((1 << 20) + 1), key=KEY, associated=b"", random=bytes(SEAL_RANDOM))
    with pytest.raises(InvalidInput):
        reseal(BLOB, old=KEY, new=OTHER, associated=b"demo", random=b"")
