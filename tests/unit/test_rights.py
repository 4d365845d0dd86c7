"""Rights: written one way, read strictly, and what they allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot.core.identifiers import StreamKind
from entrepot_hub.core.members import Right, Rights, check_node_name, provide_right

FILE, TREE, FEED, RESULT = StreamKind.FILE, StreamKind.TREE, StreamKind.FEED, StreamKind.RESULT


@given(st.sets(st.sampled_from(Right), min_size=1))
def test_text_and_set_are_the_same(granted: set[Right]) -> None:
    """What is printed is read back as the same set."""
    rights = Rights.of(granted)
    assert Rights.parse(str(rights)) == rights


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("request,provide", "request:files,provide:files"),
        ("provide:files, request:files", "request:files,provide:files"),
        ("owner,read,read", "read,owner"),
        ("worker,keeper,provide:feeds", "provide:feeds,keeper,worker"),
    ],
)
def test_rights_are_printed_one_way(text: str, canonical: str) -> None:
    """Order, blanks, repetition and the short words do not matter."""
    assert str(Rights.parse(text)) == canonical


@pytest.mark.parametrize("text", ["", " ", "request,", "Request", "request:", "request:file", "owner;read", "x" * 1000])
def test_unknown_words_are_refused(text: str) -> None:
    """A word that is no right is an error that lists those there are."""
    with pytest.raises(InvalidInput):
        Rights.parse(text)


def test_what_rights_allow() -> None:
    """Files include trees; requesting includes reading; an owner may do everything, a class alone nothing."""
    files = Rights.parse("request,provide")
    assert files.may_request(FILE)
    assert files.may_request(TREE)
    assert files.may_provide(TREE)
    assert not files.may_request(FEED)
    assert not files.may_provide(RESULT)
    assert files.may_read
    reader = Rights.parse("read")
    assert reader.may_read
    assert not reader.may_request_any
    assert not reader.may_provide_any
    assert not Rights.parse("provide:feeds").may_read
    owner = Rights.parse("owner")
    assert owner.owns
    assert all(owner.may_request(kind) and owner.may_provide(kind) for kind in StreamKind)
    assert owner.may_read
    classes = Rights.parse("keeper,worker")
    assert not any((classes.may_read, classes.may_request_any, classes.may_provide_any, classes.owns))
    assert Right.KEEPER in classes


@pytest.mark.parametrize("kind", list(StreamKind))
def test_the_right_to_provide_is_the_one_that_is_asked_for(kind: StreamKind) -> None:
    """Whoever has just that right may provide that kind."""
    assert Rights.of([provide_right(kind)]).may_provide(kind)


def test_rights_add_up() -> None:
    """Joining two sets keeps both; an empty set is false."""
    assert str(Rights.parse("read") | Rights.parse("owner")) == "read,owner"
    assert not Rights()


def test_a_nodes_name_is_printable() -> None:
    """Names come from strangers and are shown to people."""
    assert check_node_name("Ünïcode's laptop") == "Ünïcode's laptop"
    for name in ("", " a", "a ", "a\x1b[31m", "a\u202eb", "a\u200bb", "a\u2066b", "a\ufeffb", "a\nb", "x" * 65):
        with pytest.raises(InvalidInput):
            check_node_name(name)


@pytest.mark.parametrize(
    "name", ["admin", "Admin", "hub", "HUB", "the hub", "The  Hub", "ａｄｍｉｎ", "the\u00a0admin"]
)
def test_no_node_goes_by_the_hubs_names(name: str) -> None:
    """The log and the hub's sentences name nodes beside the admin and the hub: nobody passes for one of those."""
    with pytest.raises(InvalidInput):
        check_node_name(name)
    assert check_node_name(f"{name.strip()}'s lab".replace("\u00a0", " "))
