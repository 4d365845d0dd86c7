"""Inputs for decoders: bytes of any kind, and valid ones that were damaged, cut, joined or filled with odd values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgpack
from hypothesis import strategies as st

_ODD_TEXT = ["", "\x00", "\n", "é", "\ud800", "..", "/", "*", ">", "%", "a" * 3000, "0" * 70, "-1", "1e999", "null"]
_ODD: list[Any] = [
    *_ODD_TEXT,
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**64 - 1,
    10**40,
    -(2**63),
    1.5,
    1e308,
    [],
    {},
    [[]],
    {"a": 1},
]
_TOKENS = [
    b"",
    b"\x00",
    b"\xff",
    b"\r\n",
    b"\n",
    b"%",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98\x80",
    b"{",
    b"[",
    b'"',
    b"/",
    b":",
    b"@",
]
_TOKENS += [
    b"?",
    b"#",
    b"=",
    b"&",
    b"99999999999999999999",
    b"-1",
    b"0x",
    b"!!int ",
    b"*",
    b"e308",
    b"NaN",
    b"a" * 400,
    b"[" * 200,
]


@st.composite
def _damaged(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 6)):
            case 0:
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                data[at:at] = draw(st.sampled_from(_TOKENS))
            case 2:
                del data[at : at + draw(st.integers(1, 16))]
            case 3:
                data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
            case 4:
                del data[at:]
            case 5:
                other = draw(st.sampled_from(samples))
                data[at:] = other[draw(st.integers(0, len(other))) :]
            case _:
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


@st.composite
def _odd_values(draw: st.DrawFn, tree: Any) -> Any:
    """The tree with one value of it, or a name, made odd."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 3)):
        name = draw(st.sampled_from(sorted(tree, key=repr)))
        changed = dict(tree)
        match draw(st.integers(0, 4)):
            case 0:
                del changed[name]
            case 1:
                changed[draw(st.sampled_from(_ODD_TEXT))] = changed[name]
            case _:
                changed[name] = draw(_odd_values(tree[name]))
        return changed
    if isinstance(tree, list) and tree and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(tree) - 1))
        return [*tree[:at], draw(_odd_values(tree[at])), *tree[at + draw(st.integers(0, 1)) :]]
    return draw(st.sampled_from(_ODD))


def _parsed(sample: bytes) -> tuple[bytes, Any, bool] | None:
    """A sample as what stands before a document (a choice, a line), the document, and whether it is JSON."""
    for start in (0, 1, sample.find(b"\n") + 1):
        try:
            tree = json.loads(sample[start:])
        except ValueError:
            pass
        else:
            return (sample[:start], tree, True) if isinstance(tree, dict | list) else None
    try:
        tree = msgpack.unpackb(sample[1:])
    except (ValueError, msgpack.UnpackException):
        return None
    return (sample[:1], tree, False) if isinstance(tree, dict) else None


@st.composite
def _misfilled(draw: st.DrawFn, documents: Sequence[tuple[bytes, Any, bool]]) -> bytes:
    head, tree, is_json = draw(st.sampled_from(documents))
    tree = draw(_odd_values(tree))
    if is_json:
        return head + json.dumps(tree, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    try:
        packed: bytes = msgpack.packb(tree, unicode_errors="surrogatepass")
    except (OverflowError, ValueError):
        packed = b""
    return head + packed


def inputs(samples: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """What to give a decoder that takes these."""
    kinds = [st.sampled_from(samples), st.binary(max_size=200), _damaged(samples), _damaged(samples)]
    documents = [found for sample in samples if (found := _parsed(sample)) is not None]
    if documents:
        kinds += [_misfilled(documents)] * 2
    return st.one_of(kinds)
