"""Builders and strict parsers of the subjects, and where answers may go."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core import subjects
from entrepot.core.errors import InvalidInput
from entrepot.core.nkeys import SigningKey

NODE = SigningKey.generate(bytes(range(32))).public
OTHER = SigningKey.generate(os.urandom(32)).public
SESSION = "0123456789abcdef"
STREAM = "ff" + "0" * 62


def test_what_is_built_is_parsed() -> None:
    """Every builder's subject comes back from its parser."""
    for verb in subjects.HUB_VERBS:
        assert subjects.parse_hub(subjects.hub_verb("demo", verb, NODE)) == subjects.HubSubject("demo", verb, NODE)
    offer = subjects.hub_offer("demo", SESSION, NODE)
    assert subjects.parse_hub(offer) == subjects.HubSubject("demo", "offer", NODE, SESSION)
    assert subjects.parse_state(subjects.state("demo", STREAM)) == ("demo", STREAM)
    assert subjects.parse_channel_seek(subjects.channel_seek("demo")) == "demo"
    assert subjects.parse_node(subjects.node_seek(NODE)) == subjects.NodeSubject(NODE, "seek")
    assert subjects.parse_node(subjects.grant(NODE, SESSION)) == subjects.NodeSubject(NODE, "grant", SESSION)
    assert subjects.parse_connection_name(subjects.connection_name(SESSION, "daemon")) == (SESSION, "daemon")


PARSERS = [subjects.parse_hub, subjects.parse_state, subjects.parse_channel_seek, subjects.parse_node]


@given(st.text(max_size=120) | st.from_regex(r"(hub|c|n)(\.[a-z*>0-9]{0,8}){0,5}", fullmatch=True))
def test_other_subjects_are_refused(subject: str) -> None:
    """No parser takes a subject that no builder makes."""
    for parse in PARSERS:
        try:
            parse(subject)
        except InvalidInput:
            continue
        assert subject.endswith(".seek")


@pytest.mark.parametrize("bad", ["*", ">", "a.b", "", "A", "a b", "a\n", "x" * 33])
def test_no_wildcard_gets_into_a_subject(bad: str) -> None:
    """A malformed part of a subject is refused by every builder."""
    for build in (
        lambda: subjects.hub_verb(bad, "want", NODE),
        lambda: subjects.hub_verb("demo", bad, NODE),
        lambda: subjects.hub_verb("demo", "want", bad),
        lambda: subjects.hub_offer("demo", bad, NODE),
        lambda: subjects.channel_seek(bad),
        lambda: subjects.node_seek(bad),
        lambda: subjects.state("demo", bad),
        lambda: subjects.grant(NODE, bad),
        lambda: subjects.inbox(bad),
        lambda: subjects.hub_pattern(bad),
        lambda: subjects.connection_name(bad, "daemon"),
    ):
        with pytest.raises(InvalidInput):
            build()


def test_answers_go_to_the_senders_inbox_only() -> None:
    """A member who names another's inbox or a channel as the reply gets no answer sent there."""
    assert subjects.reply_allowed(NODE, f"_INBOX.{NODE}.abc.1")
    for reply in (
        None,
        "",
        f"_INBOX.{NODE}",
        f"_INBOX.{NODE}.",
        f"_INBOX.{OTHER}.abc",
        f"_INBOX.{NODE}x.abc",
        f"c.demo.state.{STREAM}",
        f"n.{OTHER}.seek",
        f"_INBOX.{NODE}.a b",
        f"_INBOX.{NODE}.*",
        f"_INBOX.{NODE}.a..b",
        f"_INBOX.{NODE}.a\n",
        f"_INBOX.{NODE}." + "a" * 300,
        "$SYS.REQ.CLAIMS.UPDATE",
    ):
        assert not subjects.reply_allowed(NODE, reply), reply


def test_a_foreign_connection_name_is_no_session() -> None:
    """Names that no session gives itself are told apart."""
    for name in ("", "hub", "0123 daemon", f"{SESSION}", f"{SESSION} Daemon", f"{SESSION}  daemon"):
        assert subjects.parse_connection_name(name) is None
