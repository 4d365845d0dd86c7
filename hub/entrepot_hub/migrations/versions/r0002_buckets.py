"""Keys, limits and bills of buckets: usage, limits, budgets, prices, pins, keys that were, comparisons."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prices",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prices", sa.JSON(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_prices")),
    )
    op.create_table(
        "bucket_keys",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("bucket_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("set_at", sa.Double(), nullable=False),
        sa.Column("set_by", sa.Text(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=True),
        sa.Column("retired_at", sa.Double(), nullable=True),
        sa.Column("safe_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["bucket_id"], ["buckets.id"], name=op.f("fk_bucket_keys_bucket_id_buckets")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bucket_keys")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("bucket_keys", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_bucket_keys_bucket_id"), ["bucket_id"], unique=False)

    op.create_table(
        "budget_marks",
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("month", sa.Text(), nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_budget_marks_channel_id_channels")),
        sa.PrimaryKeyConstraint("channel_id", "month", "percent", name=op.f("pk_budget_marks")),
    )
    op.create_table(
        "limits",
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("day_up", sa.BigInteger(), nullable=True),
        sa.Column("day_down", sa.BigInteger(), nullable=True),
        sa.Column("objects", sa.BigInteger(), nullable=True),
        sa.Column("stream", sa.BigInteger(), nullable=True),
        sa.Column("budget", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_limits_channel_id_channels")),
        sa.PrimaryKeyConstraint("channel_id", "node", name=op.f("pk_limits")),
    )
    op.create_table(
        "pins",
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("stream", sa.LargeBinary(), nullable=False),
        sa.Column("class", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_pins_channel_id_channels")),
        sa.PrimaryKeyConstraint("channel_id", "stream", name=op.f("pk_pins")),
    )
    op.create_table(
        "reconciliations",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("cursor", sa.Text(), nullable=True),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_reconciliations_channel_id_channels")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reconciliations")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("reconciliations", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_reconciliations_channel_id_started_at"), ["channel_id", "started_at"], unique=False
        )

    op.create_table(
        "usage",
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("uploads", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("uploaded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("downloads", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("downloaded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("requests_a", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("requests_b", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("deletes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("evicted", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("byte_seconds", sa.Double(), server_default="0", nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_usage_channel_id_channels")),
        sa.PrimaryKeyConstraint("channel_id", "node", "day", name=op.f("pk_usage")),
    )
    with op.batch_alter_table("channels", schema=None) as batch_op:
        batch_op.add_column(sa.Column("metered_at", sa.Double(), server_default="0", nullable=False))


def downgrade() -> None:
    with op.batch_alter_table("channels", schema=None) as batch_op:
        batch_op.drop_column("metered_at")

    op.drop_table("usage")
    with op.batch_alter_table("reconciliations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_reconciliations_channel_id_started_at"))

    op.drop_table("reconciliations")
    op.drop_table("pins")
    op.drop_table("limits")
    op.drop_table("budget_marks")
    with op.batch_alter_table("bucket_keys", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_bucket_keys_bucket_id"))

    op.drop_table("bucket_keys")
    op.drop_table("prices")
