"""What a node holds: the store."""

from entrepot.adapters.store.batches import MOST_AT_ONCE, SMALL_FILE
from entrepot.adapters.store.fetch import Fetch
from entrepot.adapters.store.placing import SmallFetch, is_small
from entrepot.adapters.store.records import (
    Added,
    Entry,
    Holding,
    How,
    ObjectSource,
    Size,
    StoreSettings,
    Verification,
)
from entrepot.adapters.store.store import Store

__all__ = [
    "MOST_AT_ONCE",
    "SMALL_FILE",
    "Added",
    "Entry",
    "Fetch",
    "Holding",
    "How",
    "ObjectSource",
    "Size",
    "SmallFetch",
    "Store",
    "StoreSettings",
    "Verification",
    "is_small",
]
