"""What people ask why about: the journal of streams, and the transfers that wants and grants belong to. Indices by
which holders are counted and objects of a stream found whatever their lock."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    for table in ("wants", "grants"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("transfer", sa.LargeBinary(), nullable=True))
    op.create_index("ix_holders_channel_id_node_seen_at", "holders", ["channel_id", "node", "seen_at"], unique=False)
    op.create_index("ix_objects_channel_id_stream", "objects", ["channel_id", "stream"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", _ID, nullable=False),
        sa.Column("channel_id", _ID, nullable=False),
        sa.Column("stream", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=True),
        sa.Column("transfer", sa.LargeBinary(), nullable=True),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=True),
        sa.Column("last", sa.BigInteger(), nullable=True),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_events_channel_id_channels")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_stream", "events", ["channel_id", "stream", "id"], unique=False)
    op.create_index("ix_events_order", "events", ["channel_id", "id"], unique=False)
    op.create_index("ix_events_until", "events", ["until"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_events_until", table_name="events")
    op.drop_index("ix_events_order", table_name="events")
    op.drop_index("ix_events_stream", table_name="events")
    op.drop_table("events")
    op.drop_index("ix_objects_channel_id_stream", table_name="objects")
    op.drop_index("ix_holders_channel_id_node_seen_at", table_name="holders")
    for table in ("grants", "wants"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column("transfer")
