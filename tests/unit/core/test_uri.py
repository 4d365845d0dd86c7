"""The URI that people pass on."""

from __future__ import annotations

import pytest

from entrepot.core.errors import InvalidInput
from entrepot.core.identifiers import StreamId
from entrepot.core.uri import StreamUri, check_hub, courtesy_name

HEX = "ffbccc67723a661a8341a2a5c39e27523a23247db89721401db43e5e6268229b"
STREAM = StreamId.parse(HEX)
HUBS = [
    *(
        "localhost",
        "hub.example.org",
        "hub.example.org:443",
        "xn--bcher-kva.example",
        "a-b.c:1",
        "10.example",
    ),
    *("192.0.2.1", "192.0.2.1:65535", "[2001:db8::1]", "[::1]:8080"),
]
BAD_HUBS = [
    *(
        "",
        ":80",
        "hub:",
        "hub:0",
        "hub:080",
        "hub:65536",
        "hub:8x",
        "HUB",
        "hub.",
        ".hub",
        "a..b",
        "-a",
        "a-",
        "a_b",
    ),
    *(
        "hub/x",
        "user@hub",
        "a:b@hub",
        "hub\n",
        "hub ",
        "bücher.example",
        "192.0.2.256",
        "192.0.2",
        "192.0.2.01",
    ),
    *(
        "2001:db8::1",
        "[2001:db8::1",
        "[2001:DB8::1]",
        "[2001:db8:0::1]",
        "[::ffff:192.0.2.1]",
        "[::ffff:c000:201]",
    ),
    *("[::1%25eth0]", "[]", "[::1]x", "a" * 64, ".".join(["a" * 60] * 5)),
]


@pytest.mark.parametrize("hub", [None, *HUBS])
@pytest.mark.parametrize("name", [None, "big.nwb", "a b#?&%.txt", "été", "..x", "日本語.zarr", "+", "%2F"])
def test_uri_round_trip(hub, name) -> None:
    """A printed URI parses to what it was printed from, and the target leaves out the name."""
    uri = StreamUri("demo", hub, STREAM, name)
    assert StreamUri.parse(str(uri)) == uri
    assert str(StreamUri.parse(str(uri))) == str(uri)
    assert str(uri).isascii()
    assert uri.target == StreamUri("demo", hub, STREAM)


def test_printed_form() -> None:
    """The spelling is the design's; only letters, digits and . _ ~ - of a name stand as they are."""
    assert str(StreamUri("demo", None, STREAM)) == f"entrepot://demo/{HEX}"
    assert str(StreamUri("demo", "h:80", STREAM, "a b+é~.t")) == f"entrepot://demo@h:80/{HEX}/a%20b%2B%C3%A9~.t"


@pytest.mark.parametrize("written", ["%61%2e%74xt", "a.txt", "%61.txt", "a%2Etxt"])
def test_any_valid_encoding_of_a_name_is_read(written) -> None:
    """Percent-encoding more than necessary changes nothing; the canonical spelling is printed."""
    uri = StreamUri.parse(f"entrepot://demo/{HEX}/{written}")
    assert uri.name == "a.txt"
    assert str(uri) == f"entrepot://demo/{HEX}/a.txt"


def test_plus_and_other_delimiters_in_names_mean_themselves() -> None:
    """A plus is a plus, as everywhere outside of queries."""
    assert StreamUri.parse(f"entrepot://demo/{HEX}/a+b(1)@:=.txt").name == "a+b(1)@:=.txt"


@pytest.mark.parametrize("hub", BAD_HUBS)
def test_malformed_hubs_are_refused(hub) -> None:
    """A hub is a lower-case host with an optional port, in its one spelling."""
    for call in (
        lambda: check_hub(hub),
        lambda: StreamUri("demo", hub, STREAM),
        lambda: StreamUri.parse(f"entrepot://demo@{hub}/{HEX}"),
    ):
        with pytest.raises(InvalidInput) as caught:
            call()
        assert caught.value.kind == "invalid-uri"


@pytest.mark.parametrize("hub", HUBS)
def test_hubs(hub) -> None:
    """Names, IPv4 and IPv6 addresses, with and without a port."""
    assert check_hub(hub) == hub


@pytest.mark.parametrize(
    "text",
    [
        *("", "entrepot:", "entrepot://", "entrepot://demo", "entrepot://demo/", f"entrepot://{HEX}", HEX),
        *(f"ENTREPOT://demo/{HEX}", f"entrepot:/demo/{HEX}", f"entrepot:///{HEX}", f"http://demo/{HEX}"),
        *(f" entrepot://demo/{HEX}", f"entrepot://demo/{HEX}\n", f"entrepot://demo/{HEX} "),
        *(f"entrepot://demo/{HEX.upper()}", f"entrepot://demo/{HEX[:-1]}", f"entrepot://demo//{HEX}"),
        *(
            f"entrepot://Demo/{HEX}",
            f"entrepot://de-mo/{HEX}",
            f"entrepot://{'d' * 33}/{HEX}",
            f"entrepot://@h/{HEX}",
        ),
        *(f"entrepot://demo:pw@h/{HEX}", f"entrepot://demo@a@h/{HEX}", f"entrepot://d%65mo/{HEX}"),
        *(f"entrepot://demo/{HEX}?", f"entrepot://demo/{HEX}#", f"entrepot://demo/{HEX}?a=b"),
        f"entrepot://demo/{'00' * 32}",
    ],
)
def test_malformed_uris_are_refused(text) -> None:
    """Anything but the one form is refused with a sentence."""
    with pytest.raises(InvalidInput) as caught:
        StreamUri.parse(text)
    assert caught.value.kind == "invalid-uri"


@pytest.mark.parametrize(
    "written",
    [
        *(
            "",
            "a/b",
            "a/",
            "/a",
            ".",
            "..",
            "%2e%2e",
            "%2E",
            "a%2Fb",
            "a%5Cb",
            "a%00",
            "a%0A",
            "%7F",
            "a%C2%85",
        ),
        *("%", "%4", "%zz", "a b", "é", "a?b", "a#b", "a?", "a#", "%FF", "%C3", "e%CC%81", "%ED%A0%80", "\\"),
        *("%E2%80%AEtxt.exe", "%E2%80%A8", "a" * 256, "%C3%A9" * 128, "a" * 3000),
    ],
)
def test_unsafe_names_are_refused(written) -> None:
    """A name is one printable segment of at most 255 bytes that no system reads as a path."""
    with pytest.raises(InvalidInput) as caught:
        StreamUri.parse(f"entrepot://demo/{HEX}/{written}")
    assert caught.value.kind == "invalid-uri"


def test_the_longest_uri_parses() -> None:
    """The bound on a URI's length cuts off nothing that is valid."""
    host = ".".join(["a" * 62] * 4)
    uri = StreamUri("c" * 32, f"{host}:65535", STREAM, "é" * 127)
    assert StreamUri.parse(str(uri)) == uri


def test_courtesy_names() -> None:
    """File names are carried in form C, or not at all where a URI cannot carry them."""
    assert courtesy_name("e\u0301te\u0301.txt") == "été.txt"
    assert [courtesy_name(name) for name in ("", "..", "a/b", "a\\b", "\udcff", "x" * 256, "a\nb")] == [None] * 7


def test_broken_text_is_refused() -> None:
    """A lone surrogate, as file names on Linux may have, raises our error."""
    for call in (
        lambda: StreamUri("demo", None, STREAM, "\udcff"),
        lambda: StreamUri.parse(f"entrepot://demo/{HEX}/\udcff"),
    ):
        with pytest.raises(InvalidInput):
            call()
