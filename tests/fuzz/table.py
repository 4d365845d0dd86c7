"""All targets, and the decoders that are none, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.fuzz import buckets, core, hub, node
from tests.fuzz.targets import Target

TARGETS: Final[tuple[Target, ...]] = (*core.TARGETS, *node.TARGETS, *hub.TARGETS, *buckets.TARGETS)

#: Functions called like decoders, that no target drives.
NOT_OUTSIDE: Final[Mapping[str, str]] = {
    "entrepot.adapters.hub_client:HubClient.read_trial": "asks the hub; its answer is decoded as all are: hub's answer",
    "entrepot.cli.environment:read_environment": "takes paths and switches as they are",
    "entrepot.services.blocking:BlockingFile.read_at": "reads verified bytes of a stream, decodes nothing",
    "entrepot_hub.adapters.accounts:Accounts.load": "takes over what the hub itself kept",
    "entrepot_hub.adapters.buckets.s3_client:_Given.load_credentials": "hands out keys that were parsed before",
    "entrepot_hub.adapters.export_rows:read_document": "reads the hub's own tables to write an export",
    "entrepot_hub.cli.channels:read_credentials": "reads a file whose bytes go to parse_keys",
    "entrepot_hub.core.master_keys:MasterKeys.unseal": "calls unseal with the key that fits",
    "entrepot_hub.core.prices:from_document": "reads the hub's own table of prices, checked when they were set",
    "entrepot_hub.services.identity:load_change": "reads a file whose bytes go to Change.read",
    "entrepot_hub.services.identity:load_identity": "reads a file whose bytes go to unseal and NatsIdentity.load",
    "entrepot_hub.services.identity:load_keys": "reads what goes to MasterKey.parse",
    "entrepot_hub.services.identity:load_master": "reads what goes to MasterKey.parse",
    "entrepot_hub.services.origins:read_keys": "reads a file whose bytes go to parse_keys",
    "entrepot_hub.services.settings:load_settings": "reads a file whose bytes go to parse_settings",
    "entrepot_hub.services.urls:read_trial": "signs a URL, decodes nothing",
}
