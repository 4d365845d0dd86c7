"""The commands that compute names: ``id`` and ``uri``. They work offline and write nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from entrepot.cli.options import Channel, Hub, Json, Quiet, check_channel, check_host
from entrepot.cli.output import Failures, Output
from entrepot.cli.progress import display
from entrepot.cli.running import interruptible, run
from entrepot.core.errors import EntrepotError, InvalidInput, NotFound
from entrepot.core.identifiers import StreamId
from entrepot.core.uri import SCHEME, StreamUri, courtesy_name

if TYPE_CHECKING:
    from entrepot.cli.environment import Environment
    from entrepot.core.lock import SchemaLock


def id_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Files; - is standard input.")],
    sha256: Annotated[bool, typer.Option("--sha256", help="Print the SHA-256 of the whole file too.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print a file's stream id, computed here and now.

    For one file the id stands alone; for several, each line ends with the file's name.
    """
    from entrepot.cli.hashing import hash_path

    out = Output(as_json=json, quiet=quiet)
    found: list[dict[str, object]] = []
    failures = Failures(out)
    with interruptible(out, "Nothing was changed."), display(out) as shown:
        for path in files:
            try:
                stream = hash_path(path, shown.meter(path.name, "reading"), alias=sha256)
            except EntrepotError as error:
                failures.add(str(path), error)
                continue
            name = stream.opening.stream_id().hex
            digest = stream.sha256.hex() if stream.sha256 is not None else None
            found.append({"path": path, "stream": name, "length": stream.opening.length, "sha256": digest})
            parts = [name, *([digest] if digest else []), *([str(path)] if len(files) > 1 else [])]
            out.lines("  ".join(parts))
    failures.end({"files": found})


def uri(
    target: Annotated[str, typer.Argument(metavar="FILE|ID|URI", help="A file, 64 hexadecimal digits, or a URI.")],
    channel: Channel = None,
    hub: Hub = None,
    name: Annotated[str | None, typer.Option("--name", help="The file name at the URI's end.")] = None,
    objects: Annotated[bool, typer.Option("--objects", help="Print every object's key instead.")] = False,
    length: Annotated[
        str | None, typer.Option("--length", metavar="SIZE", help="The stream's length, if only its id is known here.")
    ] = None,
    lock: Annotated[
        str | None,
        typer.Option("--lock", metavar="JSON", help="The schema lock, if the channel was not joined."),
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="What the bucket's owner put before all keys.")] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the URI of a file or stream, or its objects' keys, computed offline.

    The channel and its schema lock are those that were joined; with --channel and --hub any other one.
    """
    from entrepot.cli.environment import read_environment
    from entrepot.core.geometry import Geometry
    from entrepot.core.keys import check_prefix, object_key
    from entrepot.core.units import parse_size

    out = Output(as_json=json, quiet=quiet)
    environment = read_environment()
    check_prefix(prefix)
    given = StreamUri.parse(target) if target.startswith(SCHEME) else None
    wanted = check_channel(channel or (given.channel if given else None))
    where, its_lock = _place(environment, wanted, check_host(hub or (given.hub if given else None)), lock, out)
    size = None if length is None else parse_size(length)
    if given is not None:
        stream, file_name = given.stream, given.name
    else:
        stream, file_name, size = _stream(target, size, out)
    found = StreamUri(its_lock.channel, where, stream, name if name is not None else file_name)
    keys: list[str] | None = None
    if objects:
        if size is None:
            size = _known_length(environment, stream)
        count = Geometry(size, its_lock).object_count
        if not json:
            for number in range(count):
                out.lines(object_key(prefix, its_lock.id, stream, number))
            return
        keys = [object_key(prefix, its_lock.id, stream, number) for number in range(count)]
    out.result(
        {
            "uri": found,
            "stream": stream,
            "channel": its_lock.channel,
            "hub": where,
            "lock": its_lock.hex,
            "length": size,
            "objects": keys,
        },
        str(found),
    )


def _place(
    environment: Environment, channel: str | None, hub: str | None, document: str | None, out: Output
) -> tuple[str, SchemaLock]:
    """The hub's host and the channel's lock."""
    from entrepot.core.lock import SchemaLock
    from entrepot.services.hubs import Hubs

    given = None if document is None else SchemaLock.parse(document)
    if given is not None and channel not in {None, given.channel}:
        raise InvalidInput(f"the schema lock is of channel {given.channel}, not {channel}", kind="invalid-lock")
    channel = given.channel if given is not None else channel
    try:
        joined = run(Hubs(environment.settings().hubs_file).channel(channel, hub))
    except NotFound as error:
        if channel is None or hub is None:
            raise
        if given is None:
            out.note(f"{channel}@{hub} was not joined: its schema lock is taken to be the usual one.")
            given = SchemaLock(channel)
        elif error.kind not in {"not-joined", "no-such-channel"}:
            raise
        return hub, given
    return joined.hub.host, given if given is not None else joined.lock


def _stream(target: str, size: int | None, out: Output) -> tuple[StreamId, str | None, int | None]:
    """The stream, its name and its length. 64 hexadecimal digits are an id; write ./ before such a file."""
    from entrepot.cli.hashing import hash_path

    try:
        return StreamId.parse(target), None, size
    except InvalidInput:
        path = Path(target)
    with interruptible(out, "Nothing was changed."), display(out) as shown:
        opening = hash_path(path, shown.meter(path.name, "reading"), alias=False).opening
    return opening.stream_id(), courtesy_name(path.name), opening.length


def _known_length(environment: Environment, stream: StreamId) -> int:
    """The length of a stream that lies in the store."""
    from entrepot.adapters.store import Store
    from entrepot.adapters.store.store import CATALOGUE

    folder = environment.settings().store_folder

    async def ask() -> int:
        async with Store(folder) as store:
            return (await store.entry(stream)).opening.length

    try:
        if (folder / CATALOGUE).exists():
            return run(ask())
    except NotFound:
        pass
    raise NotFound(
        f"nothing here knows the length of {stream}",
        kind="no-such-stream",
        hint="An id does not tell it: add --length, or name the file.",
    )
