"""What the commands, and programs that use ``entrepot.get`` and its like, take from the environment: the one place of
the node that reads it.

``ENTREPOT_HOME``, ``ENTREPOT_CA_FILE``, ``ENTREPOT_PLAIN_HTTP``, ``ENTREPOT_BWLIMIT``, ``ENTREPOT_DEBUG`` and the proxy
variables that curl and Python know.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import platformdirs

from entrepot.core.errors import InvalidInput, NotFound
from entrepot.core.rate import Bandwidth

if TYPE_CHECKING:
    from entrepot.services.settings import NodeSettings

HOME: Final = "ENTREPOT_HOME"
CA_FILE: Final = "ENTREPOT_CA_FILE"
DEBUG: Final = "ENTREPOT_DEBUG"
#: What ``--bwlimit`` is if it is not given.
BWLIMIT: Final = "ENTREPOT_BWLIMIT"
#: Takes a hub's http:// address beyond this machine too: for closed networks, such as one of containers.
PLAIN_HTTP: Final = "ENTREPOT_PLAIN_HTTP"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What was set. ``home`` is absolute; ``proxies`` maps ``http``, ``https`` and ``no`` to what was given."""

    home: Path
    ca_file: Path | None = None
    proxies: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    debug: bool = False
    plain_http: bool = False
    bandwidth: Bandwidth = field(default_factory=Bandwidth)

    def settings(self) -> NodeSettings:
        """The settings of a node in this environment."""
        from entrepot.adapters.hub_client import HubClientSettings
        from entrepot.adapters.transfer import TransferSettings
        from entrepot.services.settings import NodeSettings

        ca_file = None if self.ca_file is None else str(self.ca_file)
        secure = self.proxies.get("https")
        return NodeSettings(
            home=self.home,
            ca_file=ca_file,
            proxy=secure,
            no_proxy=tuple(host for host in self.proxies.get("no", "").replace(" ", ",").split(",") if host),
            bandwidth=self.bandwidth,
            hub=HubClientSettings(plain=self.plain_http),
            transfer=TransferSettings(http_proxy=self.proxies.get("http")),
        )


def is_debugging() -> bool:
    """Whether a failure should show where it happened."""
    return _is_on(DEBUG)


def _is_on(name: str) -> bool:
    return os.environ.get(name, "") not in {"", "0"}


def read_environment() -> Environment:
    """The environment of this process. An empty variable counts as not set.

    Raises ``invalid-setting`` for a home that names no absolute folder and ``no-such-file`` for certificates that are
    not there, ``invalid-setting`` also for a limit of bandwidth that is none. Only the data folder of the user is
    asked for, never the runtime folder, which does not exist in cron jobs, containers and batch systems.
    """
    home = os.environ.get(HOME) or platformdirs.user_data_dir("entrepot", appauthor=False)
    folder = Path(home).expanduser()
    if not folder.is_absolute():
        raise InvalidInput(
            f"{HOME} is not an absolute path: {home}",
            kind="invalid-setting",
            hint="A relative one would mean another store in each folder.",
        )
    given = os.environ.get(CA_FILE)
    ca_file = Path(given).expanduser().absolute() if given else None
    if ca_file is not None and not ca_file.is_file():
        raise NotFound(
            f"{CA_FILE} names {ca_file}, which is not there",
            kind="no-such-file",
            hint="It is a file of certificates in PEM format, trusted beside those of the system.",
            path=str(ca_file),
        )
    # Lower case wins over upper case, and HTTP_PROXY is left out under CGI: as everywhere.
    found = urllib.request.getproxies_environment()
    proxies = {name: found[name] for name in ("http", "https", "no") if found.get(name)}
    return Environment(
        home=folder,
        ca_file=ca_file,
        proxies=MappingProxyType(proxies),
        debug=is_debugging(),
        plain_http=_is_on(PLAIN_HTTP),
        bandwidth=_bandwidth(),
    )


def _bandwidth() -> Bandwidth:
    given = os.environ.get(BWLIMIT)
    if not given:
        return Bandwidth()
    try:
        return Bandwidth.parse(given)
    except InvalidInput as error:
        raise InvalidInput(f"{BWLIMIT}: {error.message}", kind="invalid-setting", hint=error.hint) from None
