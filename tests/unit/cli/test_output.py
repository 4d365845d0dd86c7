"""Where results, remarks and errors go, and in which form."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import typer

from entrepot.cli.output import Failures, Output, ReaderGone, fail, one_line, plain, tell, write
from entrepot.core.errors import Conflict, NotFound, RetryLater
from entrepot.core.identifiers import Opening, StreamId
from entrepot.core.uri import StreamUri

STREAM = StreamId.parse("ffe7b33958dd5ce7079aee57184e33f68cf5d8c49856ab9828530a086d94d634")


def test_a_result_is_text_or_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    """The same result is lines for pipes, or with --json one document on one line."""
    Output().result({"a": STREAM}, "x", "y")
    assert capsys.readouterr() == ("x\ny\n", "")
    out = Output(as_json=True)
    out.lines("nothing of this")
    out.result({"a": STREAM}, "x", "y")
    assert capsys.readouterr() == (f'{{"a": "{STREAM.hex}"}}\n', "")


def test_remarks_go_to_stderr_unless_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    """A remark never mixes with the result, and --quiet leaves it out."""
    Output().note("by the way")
    Output(quiet=True).note("by the way")
    assert capsys.readouterr() == ("", "by the way\n")


def test_an_error_is_a_sentence_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr stand one sentence and below it what can be done; the exit code is that of the class."""
    assert fail(NotFound("it is\nnot there", hint="Look elsewhere."), as_json=False) == 3
    assert capsys.readouterr() == ("", "entrepot: it is not there\n  Look elsewhere.\n")


def test_an_error_is_a_document_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the error with its kind and data is on stdout and nothing on stderr."""
    assert fail(Conflict("there", kind="exists", path="p"), as_json=True) == 5
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"kind": "exists", "message": "there", "hint": None, "data": {"path": "p"}}}
    assert err == ""


def test_an_error_says_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    """The path is named before a message that leaves it out, and not named twice."""
    tell(NotFound("gone"), "a/b")
    tell(NotFound("a/b is gone"), "a/b")
    assert capsys.readouterr().err == "entrepot: a/b: gone\nentrepot: a/b is gone\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [("a\nb\tc", "a b c"), ("\x1b[31mred", "\\x1b[31mred"), ("ü 大 e\u0301", "ü 大 e\u0301"), ("\udcff", "\\udcff")],
)
def test_strangers_words_cannot_drive_the_terminal(text: str, line: str) -> None:
    """Line ends and control characters in a message are made harmless; letters stay."""
    assert one_line(text) == line


def test_interruption_is_told_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C is a sentence, or with --json an error of kind cancelled."""
    Output().interrupted("It resumes.")
    assert capsys.readouterr() == ("", "entrepot: interrupted. It resumes.\n")
    Output(as_json=True).interrupted("It resumes.")
    out, err = capsys.readouterr()
    assert (json.loads(out)["error"]["kind"], err) == ("cancelled", "")


def test_failures_are_collected(capsys: pytest.CaptureFixture[str]) -> None:
    """The document lists what failed, and the exit code is that of the first failure."""
    failures = Failures(Output(as_json=True))
    failures.add("a", NotFound("gone"))
    failures.add("b", Conflict("there"))
    with pytest.raises(typer.Exit) as exit_:
        failures.end({"done": []})
    assert exit_.value.exit_code == 3
    document = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in document["failed"]] == ["a", "b"]
    assert document["error"] == document["failed"][0]["error"]


def test_without_failures_nothing_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    """When all went well the document has an empty list and no error."""
    Failures(Output(as_json=True)).end({"done": [1]})
    assert json.loads(capsys.readouterr().out) == {"done": [1], "failed": []}


def test_values_become_json() -> None:
    """Ids and URIs are text, bytes hex, records objects, sets sorted lists."""
    assert plain(StreamUri("demo", None, STREAM)) == f"entrepot://demo/{STREAM.hex}"
    assert plain({"x": frozenset({"b", "a"}), 1: (b"\xff", None, 1.5)}) == {"x": ["a", "b"], "1": ["ff", None, 1.5]}
    assert plain(Opening(0, bytes(32))) == {"length": 0, "root": "00" * 32}
    assert plain(Path(os.fsdecode(b"a\xff"))) == "a\\xff"
    assert plain(NotFound("gone")) == {"kind": "not-found", "message": "gone", "hint": None, "data": {}}


def test_a_name_that_is_no_text_goes_out_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a file name reach a pipe unchanged, so that the next command finds the file."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8", newline="\n")
    write(stream, os.fsdecode(b"a\xff"))
    write(stream, "b")
    assert raw.getvalue() == b"a\xff\nb\n"


def test_a_character_without_encoding_is_escaped() -> None:
    """A stream that has no ü gets an escape instead of an exception."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="\n")
    write(stream, "für")
    assert raw.getvalue() == b"f\\xfcr\n"


def test_a_reader_that_went_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken pipe is not an OSError to callers: typer would turn that into an exit code of its own."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(ReaderGone):
        Output().lines("x")


def test_one_reason_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    """What fails for a reason that was told is counted, with a few names, and another reason is told as itself; the
    document has each."""
    uris = [f"entrepot://demo@hub.example.org/{STREAM}/f{number}" for number in range(6)]
    for as_json in (False, True):
        failures = Failures(Output(as_json=as_json), "uri")
        for number, uri in enumerate(uris):
            error = RetryLater(f"no room: {number + 5:,} bytes are needed", kind="disk-full", hint="Free some space.")
            failures.add(uri, error)
        failures.add("other", NotFound("nobody has other"))
        failures.add("more", NotFound("nobody has more"))
        with pytest.raises(typer.Exit) as exit_:
            failures.end({"got": []})
        assert exit_.value.exit_code == 6
        out, err = capsys.readouterr()
        if as_json:
            assert [one["uri"] for one in json.loads(out)["failed"]] == [*uris, "other", "more"]
            assert err == ""
        else:
            assert err.splitlines() == [
                f"entrepot: {uris[0]}: no room: 5 bytes are needed",
                "  Free some space.",
                "entrepot: nobody has other",
                "entrepot: as f0, so failed 5 others (disk-full): f1, f2, f3, …",
                "entrepot: as other, so failed 1 other (not-found): more",
            ]
