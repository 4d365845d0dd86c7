"""Everything that can be asked of a hub by its admin, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from entrepot_hub.services import (
    administration,
    comparison,
    custody,
    diagnosis,
    export,
    overview,
    pins,
    rotation,
    usage,
)
from entrepot_hub.services.desk import Operation

#: One table of all tables.
OPERATIONS: Final[Mapping[str, Operation[Any, Any]]] = {
    **administration.OPERATIONS,
    **comparison.OPERATIONS,
    **custody.OPERATIONS,
    **diagnosis.OPERATIONS,
    **export.OPERATIONS,
    **overview.OPERATIONS,
    **pins.OPERATIONS,
    **rotation.OPERATIONS,
    **usage.OPERATIONS,
}
