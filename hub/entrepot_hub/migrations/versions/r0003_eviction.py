"""What eviction remembers: visits, cost and standing of objects, level and evicted bytes of channels."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# An index with a descending column is made and dropped outside a batch, which would not find that column.
_READY = sa.text("status = 'ready'")


def upgrade() -> None:
    with op.batch_alter_table("channels", schema=None) as batch_op:
        batch_op.add_column(sa.Column("level", sa.Double(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("evicted", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.drop_column("hand")

    with op.batch_alter_table("objects", schema=None) as batch_op:
        batch_op.drop_index("ix_objects_ready", sqlite_where=_READY, postgresql_where=_READY)
        batch_op.add_column(sa.Column("visits", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("cost", sa.Double(), server_default="4", nullable=False))
        batch_op.add_column(sa.Column("standing", sa.Double(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("left_at", sa.BigInteger(), nullable=True))
    op.execute(sa.text("UPDATE objects SET visits = 1, standing = 8 WHERE visited AND status = 'ready'"))
    with op.batch_alter_table("objects", schema=None) as batch_op:
        batch_op.drop_column("visited")
    op.create_index(
        "ix_objects_standing",
        "objects",
        ["channel_id", "standing", sa.text("ready_number DESC")],
        unique=False,
        sqlite_where=_READY,
        postgresql_where=_READY,
    )


def downgrade() -> None:
    op.drop_index("ix_objects_standing", "objects", sqlite_where=_READY, postgresql_where=_READY)
    with op.batch_alter_table("objects", schema=None) as batch_op:
        batch_op.add_column(sa.Column("visited", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.execute(sa.text("UPDATE objects SET visited = (visits > 0)"))
    with op.batch_alter_table("objects", schema=None) as batch_op:
        batch_op.alter_column("visited", existing_type=sa.Boolean(), server_default=None)
        for name in ("left_at", "standing", "cost", "visits"):
            batch_op.drop_column(name)
        batch_op.create_index(
            "ix_objects_ready",
            ["channel_id", "ready_number"],
            unique=False,
            sqlite_where=_READY,
            postgresql_where=_READY,
        )

    with op.batch_alter_table("channels", schema=None) as batch_op:
        batch_op.add_column(sa.Column("hand", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.drop_column("evicted")
        batch_op.drop_column("level")
