"""Two nodes at a real hub, all of it by the command line: join, add, get, cat, info, ls, verify, rm, status."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.integration.cli.conftest import Cli, HubProcess, Nodes


@pytest.fixture
def lab(members: tuple[Cli, Cli]) -> Cli:
    return members[0]


@pytest.fixture
def office(members: tuple[Cli, Cli], tmp_path: Path) -> Cli:
    """The other node, in an empty folder."""
    return Cli(members[1].home, tmp_path)


def content(cli: Cli, name: str, size: int = 300_000) -> Path:
    path = cli.folder / name
    path.write_bytes(os.urandom(size))
    return path


def documented(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr or done.stdout
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def test_a_file_travels(lab: Cli, office: Cli, hub: HubProcess) -> None:
    """Add prints a URI and starts the daemon; get elsewhere prints the path of the same bytes; then it is known."""
    name = "größe der aufnahme.nwb"
    path = content(lab, name)
    added = lab.run("add", name)
    assert added.returncode == 0, added.stderr
    uri = added.stdout.strip()
    stream = lab.run("id", name).stdout.strip()
    assert uri == f"entrepot://demo@{hub.host}/{stream}/gr%C3%B6%C3%9Fe%20der%20aufnahme.nwb"
    assert lab.run("uri", name).stdout.strip() == uri

    got = office.run("get", uri)
    assert (got.returncode, got.stdout) == (0, f"{name}\n"), got.stderr
    assert (office.folder / name).read_bytes() == path.read_bytes()
    again = office.run("get", uri)
    assert (again.returncode, again.stdout) == (0, f"{name}\n")
    assert again.stderr == f"{name} is already there, unchanged.\n"
    (office.folder / "taken").write_text("mine")
    refused = office.run("get", uri, "--output", "taken")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert "--force" in refused.stderr
    (office.folder / "folder").mkdir()
    assert office.run("get", uri, "-o", "folder").stdout == f"folder/{name}\n"
    document = documented(office.run("get", stream, "-o", "copy", "--json"))
    assert document["path"] == str(office.folder / "copy")
    assert (document["fetched_bytes"], document["length"]) == (0, 300_000)

    assert uri in office.run("ls").stdout.splitlines()
    assert "293 KiB  complete  linked" in office.run("ls", "--long", "--channel", "demo").stdout
    verified = documented(office.run("verify", uri, "--json"))["verified"]
    assert isinstance(verified, list)
    assert [(one["stream"], one["ok"]) for one in verified] == [(stream, True)]
    assert documented(office.run("rm", uri, "--json"))["removed"] is True
    assert uri not in office.run("ls").stdout
    assert (office.folder / name).exists()


def test_what_a_get_would_take(lab: Cli, office: Cli) -> None:
    """Info and get --dry-run tell the same before anything moved, and how much lies in the bucket afterwards."""
    name = "file2.nwb"
    content(lab, name)
    uri = lab.run("add", name).stdout.strip()
    before = documented(office.run("info", uri, "--json"))
    assert (before["length"], before["missing"], before["held"]) == (300_000, 300_000, False)
    assert (before["object_count"], before["objects_in_bucket"], before["holders_online"]) == (5, 0, 1)
    dry = documented(office.run("get", uri, "--dry-run", "--json"))
    assert {**dry, "holders": None} == {**before, "holders": None}
    assert list(office.folder.iterdir()) == []
    assert "lab (online)" in office.run("info", uri).stdout
    assert office.run("get", uri, "--quiet").stderr == ""
    after = documented(office.run("info", uri, "--json"))
    assert (after["objects_in_bucket"], after["missing"], after["held"]) == (5, 0, True)


def test_cat_writes_bytes(lab: Cli, office: Cli) -> None:
    """Cat writes a whole stream or a range to stdout and nothing else, whatever way the range is told."""
    name = "file3.nwb"
    data = content(lab, name).read_bytes()
    uri = lab.run("add", name).stdout.strip()
    assert office.data("cat", uri, "--range", "70000-70009") == data[70_000:70_010]
    touched = documented(office.run("info", uri, "--json"))
    assert touched["objects_in_bucket"] == 1
    assert office.data("cat", uri, "--offset", "64K", "--length", "1K") == data[65536 : 65536 + 1024]
    assert office.data("cat", uri, "--range", "299990-") == data[-10:]
    assert office.data("cat", uri) == data


def test_a_range_is_read_by_a_reader_that_leaves(lab: Cli) -> None:
    """When the reader of cat has enough, cat ends quietly."""
    name = "file4.nwb"
    content(lab, name, 4_000_000)
    uri = lab.run("add", name, "--no-serve").stdout.strip()
    process = lab.start("cat", uri)
    assert process.stdout is not None
    assert process.stderr is not None
    assert len(process.stdout.read(10)) == 10
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), told) == (141, b"")


def test_status_and_whoami_tell_where_it_belongs(lab: Cli, hub: HubProcess) -> None:
    """After add, status shows the daemon up at the hub with its channel; whoami the name and the rights."""
    name = "file5.nwb"
    content(lab, name)
    document = documented(lab.run("add", name, "--json"))
    assert (document["served"], document["failed"]) == (True, [])
    status = lab.run("status").stdout
    assert hub.host in status
    assert " linked" in status
    assert "channels  demo" in status
    hubs = documented(lab.run("whoami", "--json"))["hubs"]
    assert isinstance(hubs, list)
    assert hubs[0]["reason"] is None
    assert (hubs[0]["name"], hubs[0]["host"], hubs[0]["channels"][0]["name"]) == ("lab", hub.host, "demo")
    lock = hubs[0]["channels"][0]["schema_lock"]
    assert (lock["miniblock"], lock["object"]) == (16384, 65536)
    assert "  channel demo  request,provide\n" in lab.run("whoami").stdout
    assert lab.run("status", "--check").returncode == 0


def test_several_channels_have_to_be_told_apart(nodes: Nodes, hub: HubProcess) -> None:
    """With two channels and none named, add lists both and does nothing; with a name it works."""
    name = "file6.nwb"
    hub.channel("second")
    lab = nodes.member("both", hub, "demo", "second")
    content(lab, name)
    done = lab.run("add", name, "--no-serve")
    assert (done.returncode, done.stdout) == (5, "")
    assert f"demo@{hub.host}" in done.stderr
    assert f"second@{hub.host}" in done.stderr
    assert lab.run("ls").stdout == ""
    done = lab.run("add", name, "--channel", "second", "--no-serve")
    assert done.stdout.startswith(f"entrepot://second@{hub.host}/")


def test_one_bad_path_does_not_hold_up_the_others(lab: Cli) -> None:
    """Add goes on after a file that is not there; the exit code and the document tell of it."""
    name = "file7.nwb"
    content(lab, name)
    done = lab.run("add", "none", name, "--no-serve", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 3
    assert [one["path"] for one in document["added"]] == [name]
    assert document["added"][0]["sha256"] == hashlib.sha256((lab.folder / name).read_bytes()).hexdigest()
    assert (document["failed"][0]["path"], document["served"]) == ("none", False)
    assert document["error"]["kind"] == "no-such-file"


def test_nobody_has_it(office: Cli, hub: HubProcess) -> None:
    """A stream that nobody offers ends with a reason and exit code 3 once the deadline is over, and leaves no file."""
    stream = "ff55a951c37248e968155b15fd1625dba004ccb17bf1d481fac8755d839fd0d6"
    done = office.run("get", f"entrepot://demo@{hub.host}/{stream}/x", "--timeout", "1", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["kind"]) == (3, "no-holder"), done
    assert list(office.folder.iterdir()) == []


def test_ctrl_c_stops_a_get_that_resumes(lab: Cli, office: Cli) -> None:
    """Ctrl-C while waiting for a holder ends with 130 and a sentence, without a file; the same command then works."""
    name = "file9.nwb"
    content(lab, name)
    uri = lab.run("uri", name).stdout.strip()
    process = office.start("get", uri, "--wait", "5m")
    assert process.stderr is not None
    line = process.stderr.readline()
    assert b"fetching" in line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert err.splitlines()[-1].startswith(b"entrepot: interrupted. What was fetched is kept")
    assert b"Traceback" not in err
    assert list(office.folder.iterdir()) == []
    assert lab.run("add", name).stdout.strip() == uri
    assert office.run("get", uri).returncode == 0
    assert (office.folder / name).read_bytes() == (lab.folder / name).read_bytes()


def test_a_spoiled_file_is_noticed(lab: Cli) -> None:
    """Verify tells of a linked file that was changed, with exit code 5, and ls shows it."""
    name = "file10.nwb"
    path = content(lab, name)
    uri = lab.run("add", name, "--no-serve").stdout.strip()
    path.write_bytes(b"something else")
    done = lab.run("verify", uri, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["error"]["kind"]) == (5, "changed")
    assert document["verified"][0]["missing"] == [str(path)]
    streams = documented(lab.run("ls", "--json"))["streams"]
    assert isinstance(streams, list)
    assert [one["state"] for one in streams if one["uri"] == uri] == ["changed"]


def test_many_files_by_one_command(lab: Cli, office: Cli) -> None:
    """Get takes URIs from the command line and from lists, into one folder; what fails is told with its URI, the others
    come, and the exit code is the first error's."""
    names = [f"f{number}" for number in range(6)]
    contents = {name: content(lab, name, 5000).read_bytes() for name in names}
    uris = documented(lab.run("add", "--json", *names))["added"]
    assert isinstance(uris, list)
    listed = [str(one["uri"]) for one in uris]
    (office.folder / "list").write_text("# what I want\n\n" + "\n".join(listed[1:]) + "\n")
    got = office.run("get", listed[0], "--from-file", "list", "-o", "here")
    assert got.returncode == 0, got.stderr
    assert sorted(got.stdout.splitlines()) == [f"here/{name}" for name in names]
    assert got.stderr.startswith("6 files, ")
    assert {path.name: path.read_bytes() for path in (office.folder / "here").iterdir()} == contents

    (office.folder / "here" / "f2").write_text("mine")
    again = office.run("get", "--json", "--from-file", "-", "-o", "here", given="\n".join(listed))
    document = json.loads(again.stdout)
    assert again.returncode == 5
    assert {one["uri"]: one["how"] for one in document["got"]} == dict.fromkeys(set(listed) - {listed[2]}, "there")
    assert [(one["uri"], one["error"]["kind"]) for one in document["failed"]] == [(listed[2], "exists")]
    assert document["error"]["kind"] == "exists"

    twin = lab.folder / "twin"
    twin.mkdir()
    (twin / "f1").write_bytes(b"of the same name")
    other = lab.run("add", "twin/f1").stdout.strip()
    lists = {
        "bad": (f"# mine\n\n{listed[0]}\nnot-a-uri\n", "bad, line 4: not a URI, a stream id or a sha256: 'not-a-uri'"),
        "cut": (f"{listed[0][:50]}\n", f"'{listed[0][:50]}'"),
        "empty": ("# nothing\n\n", "empty is empty: it names no stream"),
        "twins": (f"{listed[1]}\n{other}\n", f"two of the streams are called f1: {listed[1]} and {other}"),
    }
    for name, (text, said) in lists.items():
        (office.folder / name).write_text(text)
        refused = office.run("get", "--from-file", name, "-o", f"into-{name}")
        assert refused.returncode == 2
        assert said in refused.stderr.splitlines()[0]
        assert not list((office.folder / f"into-{name}").glob("*"))

    for words in (["get"], ["get", "--dry-run", *listed], ["get", "--from-file", "nowhere"]):
        assert office.run(*words).returncode in {2, 3}


def test_an_output_that_is_there_is_left_alone(lab: Cli, office: Cli) -> None:
    """A folder named with a slash is made; what is there unchanged is not written again, with --force too; of two files
    that hold a stream the one that was edited is told of, and that the other is whole."""
    name = "file11.nwb"
    path = content(lab, name)
    uri = lab.run("add", name).stdout.strip()
    assert office.run("get", uri, "-o", "made/").stdout == f"made/{name}\n"
    first = office.folder / "made" / name
    before = first.stat()
    again = office.run("get", uri, "-o", "made/", "--force")
    assert (again.returncode, again.stderr) == (0, f"made/{name} is already there, unchanged.\n")
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert office.run("get", uri, "-o", "second").returncode == 0
    first.write_bytes(b"edited")
    done = office.run("verify", uri)
    assert (done.returncode, done.stdout) == (5, "")
    assert f"{first} has changed or gone" in done.stderr.splitlines()[0]
    assert "the stream is: another file here is whole" in done.stderr.splitlines()[1]
    assert office.run("get", uri, "-o", "made/", "--force").returncode == 0
    assert first.read_bytes() == path.read_bytes()
    missing = office.run("get", uri, "-o", "none/file")
    assert missing.returncode == 3
    assert "slash" in missing.stderr.splitlines()[1]
