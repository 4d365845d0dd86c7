"""What Alembic runs for each migration: on the connection and in the transaction that the hub opened for it."""

from __future__ import annotations

from alembic import context

from entrepot_hub.adapters.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
    compare_server_default=True,
)
context.run_migrations()
