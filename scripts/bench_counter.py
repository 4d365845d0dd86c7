"""Counts requests and bytes on their way to a bucket's server: nginx in front of it, by its log.

It keeps nothing back (no buffering) and changes nothing, not even the host that is signed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.servers.process import ServerProcess, answers_http

_SETTINGS = """
{user}
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    log_format passed escape=json '["$request_method", $status, $request_length, $bytes_sent, "$request_uri"]';
    access_log {folder}/passed passed;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream bucket {{ server 127.0.0.1:{target}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 0;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Connection "";
        proxy_request_buffering off;
        proxy_buffering off;
        location / {{ proxy_pass http://bucket; }}
    }}
}}
"""


@dataclass(frozen=True)
class Passed:
    """One request: bytes with heads, ``up`` to the server and ``down`` from it."""

    method: str
    status: int
    up: int
    down: int
    path: str


class Counter:
    """A context manager: listens at :attr:`port` of loopback in front of the port ``target``. :func:`nginx` has to be
    there."""

    def __init__(self, target: int, folder: Path) -> None:
        program = nginx()
        assert program is not None
        self._folder = folder
        folder.mkdir()

        def command(port: int) -> Sequence[str | Path]:
            user = "user root;" if os.geteuid() == 0 else ""
            settings = folder / "nginx.conf"
            settings.write_text(_SETTINGS.format(user=user, folder=folder, target=target, port=port))
            return [program, "-c", settings, "-p", folder, "-e", folder / "error.log"]

        self._server = ServerProcess(command, answers_http, log=folder / "log")

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.port

    def passed(self) -> list[Passed]:
        """All requests until now that have ended."""
        time.sleep(0.2)  # a line is written after its answer
        return [Passed(*json.loads(line)) for line in (self._folder / "passed").read_text().splitlines()]


def nginx() -> str | None:
    """The program, if it is there."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
