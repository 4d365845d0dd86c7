"""How a command that cannot be done ends: exit code, sentence, hint, document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entrepot.cli import main as entry
from entrepot.cli.main import main, wants_json

EMPTY = "ffe7b33958dd5ce7079aee57184e33f68cf5d8c49856ab9828530a086d94d634"
URI = f"entrepot://demo/{EMPTY}"
FOREIGN = ["--quiet", "--channel", "demo", "--hub", "hub.example.org"]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ENTREPOT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


FAILING = [
    (["fetch"], 2, "invalid-input"),
    (["id"], 2, "invalid-input"),
    (["id", "--nope"], 2, "invalid-input"),
    (["id", "."], 2, "invalid-input"),
    (["id", "none"], 3, "no-such-file"),
    (["uri", EMPTY], 3, "not-joined"),
    (["uri", EMPTY, "--channel", "Demo"], 2, "invalid-input"),
    (["uri", EMPTY, "--hub", "Hub"], 2, "invalid-uri"),
    (["uri", EMPTY, *FOREIGN, "--objects"], 3, "no-such-stream"),
    (["uri", EMPTY, *FOREIGN, "--length", "ten"], 2, "invalid-input"),
    (["uri", EMPTY, *FOREIGN, "--lock", "{}"], 2, "invalid-lock"),
    (["uri", EMPTY, *FOREIGN, "--prefix", "/a"], 2, "invalid-key"),
    (["uri", "entrepot://demo/xyz"], 2, "invalid-uri"),
    (["join", "https://hub.example.org/j/short"], 2, "invalid-token"),
    (["add", "none"], 3, None),
    (["get", "entrepot://demo/xyz"], 2, "invalid-uri"),
    (["get", f"entrepot://demo@hub.example.org/{EMPTY}"], 3, "not-joined"),
    (["get", "no-such-thing"], 2, None),
    (["get", URI, "--wait", "soon"], 2, "invalid-input"),
    (["get", URI, "--timeout", "0"], 2, "invalid-input"),
    (["get", URI, "--channel", "other"], 2, "invalid-input"),
    (["get", URI, "--output", "-"], 2, "invalid-input"),
    (["info", f"entrepot://demo@hub.example.org/{EMPTY}"], 3, "not-joined"),
    (["verify"], 2, "invalid-input"),
    (["verify", EMPTY, "--all"], 2, "invalid-input"),
    (["verify", EMPTY], 3, "no-such-stream"),
    (["rm", EMPTY], 3, "no-such-stream"),
    (["rm", "xyz"], 2, None),
    (["down"], 3, "not-running"),
]


@pytest.mark.parametrize(("words", "code", "kind"), FAILING, ids=[" ".join(case[0]) for case in FAILING])
def test_an_error_is_told_in_both_forms(
    words: list[str], code: int, kind: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be done ends with the exit code of its class: one sentence on stderr, or with --json the error
    object on stdout; never a traceback."""
    assert main(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("entrepot: ")
    assert "Traceback" not in err
    assert main([*words, "--json"]) == code
    out, err = capsys.readouterr()
    assert kind in {None, json.loads(out)["error"]["kind"]}


@pytest.mark.parametrize("span", [["--range", "5"], ["--range", "9-7"], ["--range", "0-1", "--offset", "1"]])
def test_a_bad_range_is_refused(span: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Cat reads one range, of the form that HTTP has, before it does anything."""
    assert main(["cat", URI, *span]) == 2
    assert capsys.readouterr().out == ""


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command the help comes on stderr, so that a script with an empty variable notices."""
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert (out, err[:15]) == ("", "Usage: entrepot")


def test_help_is_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    """Help that was asked for goes to stdout and is no error."""
    assert main(["get", "--help"]) == 0
    out, err = capsys.readouterr()
    assert (out[:19], err) == ("Usage: entrepot get", "")


def test_our_mistake_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever escapes a command is told as our own error, with code 1 and without a traceback."""

    def broken(words: list[str], *, as_json: bool) -> int:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(entry, "_command", broken)
    assert main(["version"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("entrepot: an error of entrepot itself: ZeroDivisionError: division by zero\n")
    assert "Traceback" not in err
    monkeypatch.setenv("ENTREPOT_DEBUG", "1")
    assert main(["version"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_during_start_up_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C outside of any command's work says nothing and ends with 130."""

    def interrupted(words: list[str], *, as_json: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_command", interrupted)
    assert main(["version"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "wanted"), [(["id", "--json"], True), (["id", "--", "--json"], False), (["id"], False)]
)
def test_json_is_recognised_before_anything_is_parsed(words: list[str], wanted: bool) -> None:
    """An error of usage is a document too, and a file called --json is a file."""
    assert wants_json(words) is wanted


def test_other_spellings_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """What other programs call version and help is understood."""
    assert main(["--version"]) == main(["version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    for words, usage in ((["help"], "Usage: entrepot ["), (["help", "get"], "Usage: entrepot get ")):
        assert main(words) == 0
        assert capsys.readouterr().out.startswith(usage)


def test_an_option_before_the_command_is_told_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    """The hint says where it goes; where no command is named it is the help."""
    assert main(["--quiet", "status"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == "  Options go after the command: entrepot status --quiet"
    assert main(["--json", "status"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["hint"].endswith("entrepot status --json")
    assert main(["--nothing"]) == 2
    assert capsys.readouterr().err.splitlines()[1] == "  Try: entrepot --help"


def test_a_list_that_is_not_there_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Who gives --from-file something else hears what it takes."""
    assert main(["get", "--from-file", "nope"]) == 3
    assert "one URI on each line" in capsys.readouterr().err
