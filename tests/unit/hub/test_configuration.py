"""Files of other programs: four ways of writing, small, read once, never quoted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.core.errors import InvalidInput
from entrepot_hub.adapters.configuration import MAX_CONFIGURATION, read_configuration

SECRET = "wJalrXUtnFEMI-very-secret"

#: Ten levels of ten aliases each.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 11))
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{'<<': [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 11)
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "a: {b: x, c: true}\n"),
        ("c.yml", "base: &b {b: x}\na:\n  <<: *b\n  c: true\n"),
        ("c.json", '{"a": {"b": "x", "c": true}}'),
        ("c.toml", 'a.b = "x"\na.c = true\n'),
        ("c.toml", '\ufeff[a]\nb = "x"\nc = true\n'),
    ],
)
def test_what_a_file_says(name: str, text: str) -> None:
    """The same values in each way of writing; in YAML with aliases and merges."""
    assert read_configuration(text.encode(), name)["a"] == {"b": "x", "c": True}


@pytest.mark.parametrize("name", [".env", ".env.production", "node.env", "x.dotenv"])
def test_variables(name: str) -> None:
    """Lines of variables as shells and containers share them."""
    text = (
        "# a comment\n\n"
        "A=plain\r\n"
        "export B = two words # said\n"
        "C='a # b' # c\n"
        'D="x\\n\\"y\\" \\\\n \\q"\n'
        'E={"key": "a # b"}\n'
        "F=\n"
        "G='{\n  \"k\": 1\n}'\n"
        "H=a#b\n"
        "I=#c\n"
        "J=last"
    )
    assert read_configuration(text.encode(), name) == {
        "A": "plain",
        "B": "two words",
        "C": "a # b",
        "D": 'x\n"y" \\n \\q',
        "E": '{"key": "a # b"}',
        "F": "",
        "G": '{\n  "k": 1\n}',
        "H": "a#b",
        "I": "",
        "J": "last",
    }


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.ini", "", "of no known kind"),
        ("c", "", "of no known kind"),
        ("c.yaml", "", "holds no fields"),
        ("c.yaml", f"- {SECRET}", "holds no fields"),
        ("c.yaml", f"1: {SECRET}", "holds no fields"),
        ("c.yaml", f"a: 1\nb: {SECRET}\na: 2", "twice, line 1"),
        ("c.yaml", f"x: {{a: {SECRET}, a: 2}}", "twice, line 1"),
        ("c.yaml", f"a: [{SECRET}\nb: 2", "no YAML, from line"),
        ("c.yaml", f"a: !!python/object/apply:os.system [{SECRET}]", "no YAML, from line 1"),
        ("c.yaml", f"a: !{SECRET} x", "no YAML, from line 1"),
        ("c.yaml", f"a: 1\n--- \nb: {SECRET}", "no YAML"),
        ("c.yaml", f"a: &a [*a, {SECRET}]", "holds itself"),
        ("c.yaml", BOMB, "too many values"),
        ("c.yaml", MERGES, "too many values"),
        ("c.yaml", "a: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("c.yaml", "a: " + "[" * 50_000, "nested too deeply"),
        ("c.yaml", "a: 2001-99-99", "well formed"),
        ("c.yaml", "a: *b", "no YAML"),
        ("c.yaml", "a: \x00", "well formed"),
        ("c.json", f'{{"a": "{SECRET}", "a": 2}}', "twice"),
        ("c.json", f'{{"a": "{SECRET}"', "no JSON, from line 1"),
        ("c.json", "[" * 100_000, "well formed"),
        ("c.json", f'"{SECRET}"', "holds no fields"),
        ("c.toml", f'a = "{SECRET}"\na = 1', "well formed"),
        ("c.toml", f"a = {SECRET}", "well formed"),
        ("c.env", f"A=1\n{SECRET}", "no NAME=value in line 2"),
        ("c.env", f"A='{SECRET}", "quotes that do not fit in line 1"),
        ("c.env", f"A='x' {SECRET}", "quotes that do not fit in line 1"),
        ("c.env", f"A=1\nB=2\nA={SECRET}", "twice, in line 3"),
    ],
)
def test_what_is_refused(name: str, text: str, said: str) -> None:
    """What is not well formed, says a thing twice or grows is refused; the error tells the place and quotes nothing."""
    with pytest.raises(InvalidInput) as caught:
        read_configuration(text.encode(), name)
    assert said in str(caught.value)
    assert SECRET not in f"{caught.value!r} {caught.value.hint} {caught.value.__cause__!r} {caught.value.__context__!r}"


@pytest.mark.parametrize("data", [b"\xff", b"a: " + b"x" * MAX_CONFIGURATION])
def test_bytes_that_are_no_such_file(data: bytes) -> None:
    """Text in UTF-8, and not too much of it."""
    with pytest.raises(InvalidInput):
        read_configuration(data, "c.yaml")


@given(st.text(max_size=60), st.sampled_from(["c.yaml", "c.json", "c.toml", "c.env"]))
def test_any_text_is_values_or_refused(text: str, name: str) -> None:
    """Nothing raises anything but InvalidInput."""
    try:
        values = read_configuration(text.encode(errors="ignore"), name)
    except InvalidInput:
        return
    assert all(isinstance(key, str) for key in values)
