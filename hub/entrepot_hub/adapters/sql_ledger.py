"""The ledger of production, on SQLite or PostgreSQL."""

from __future__ import annotations

from entrepot_hub.adapters.sql_grants import SqlGrants
from entrepot_hub.adapters.sql_holdings import SqlHoldings
from entrepot_hub.adapters.sql_pins import SqlPins
from entrepot_hub.adapters.sql_reconciliation import SqlReconciliation


class SqlLedger(SqlGrants, SqlHoldings, SqlPins, SqlReconciliation):
    """:class:`entrepot_hub.core.ledger.Ledger` in a :class:`~entrepot_hub.adapters.database.Database`.

    Synchronous; from an event loop: ``await database.call(ledger.grant, proposals, now)``. Within one
    ``database.transaction()`` (or ``database.together``) several calls make one transaction. On PostgreSQL whoever
    charges or frees bytes owns the channel's row until the end, so the quota holds with any number of hubs.
    """
