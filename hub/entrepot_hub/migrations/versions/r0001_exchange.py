"""The first tables: channels, members, the exchange."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "buckets",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("binds", sa.JSON(), nullable=False),
        sa.Column("credentials", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_buckets")),
        sa.UniqueConstraint("url", "prefix", name=op.f("uq_buckets_url_prefix")),
    )
    op.create_table(
        "nodes",
        sa.Column("public", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("public", name=op.f("pk_nodes")),
    )
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_nodes_name"), ["name"], unique=False)

    op.create_table(
        "nonces",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("node", "nonce", name=op.f("pk_nonces")),
    )
    with op.batch_alter_table("nonces", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_nonces_expires"), ["expires"], unique=False)

    op.create_table(
        "settings",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_settings")),
    )
    op.create_table(
        "channels",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("quota", sa.BigInteger(), nullable=False),
        sa.Column("lock", sa.Text(), nullable=False),
        sa.Column("bucket_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("public_read", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("charged", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("ready_count", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("hand", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("charged >= 0", name=op.f("ck_channels_charged")),
        sa.CheckConstraint("quota >= 0", name=op.f("ck_channels_quota")),
        sa.ForeignKeyConstraint(["bucket_id"], ["buckets.id"], name=op.f("fk_channels_bucket_id_buckets")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_channels")),
        sa.UniqueConstraint("name", name=op.f("uq_channels_name")),
    )
    op.create_table(
        "holders",
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("stream", sa.LargeBinary(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_holders_channel_id_channels")),
        sa.PrimaryKeyConstraint("channel_id", "stream", "node", name=op.f("pk_holders")),
    )
    op.create_table(
        "invites",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("rights", sa.Text(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), server_default="0", nullable=False),
        sa.Column("proof", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.CheckConstraint("used <= uses", name=op.f("ck_invites_used")),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_invites_channel_id_channels")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invites")),
    )
    with op.batch_alter_table("invites", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_invites_channel_id"), ["channel_id"], unique=False)

    op.create_table(
        "memberships",
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("rights", sa.Text(), nullable=False),
        sa.Column("granted_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_memberships_channel_id_channels")),
        sa.ForeignKeyConstraint(["node"], ["nodes.public"], name=op.f("fk_memberships_node_nodes")),
        sa.PrimaryKeyConstraint("channel_id", "node", name=op.f("pk_memberships")),
    )
    with op.batch_alter_table("memberships", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_memberships_node"), ["node"], unique=False)

    op.create_table(
        "objects",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("lock", sa.LargeBinary(), nullable=False),
        sa.Column("stream", sa.LargeBinary(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=True),
        sa.Column("etag", sa.Text(), nullable=True),
        sa.Column("put_until", sa.Double(), nullable=False),
        sa.Column("tombstone", sa.Boolean(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=False),
        sa.Column("visited", sa.Boolean(), nullable=False),
        sa.Column("uploader", sa.Text(), nullable=True),
        sa.Column("ready_number", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_objects_channel_id_channels")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_objects")),
        sa.UniqueConstraint(
            "channel_id", "lock", "stream", "number", name=op.f("uq_objects_channel_id_lock_stream_number")
        ),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("objects", schema=None) as batch_op:
        batch_op.create_index(
            "ix_objects_ready",
            ["channel_id", "ready_number"],
            unique=False,
            sqlite_where=sa.text("status = 'ready'"),
            postgresql_where=sa.text("status = 'ready'"),
        )
        batch_op.create_index(
            "ix_objects_restless",
            ["id"],
            unique=False,
            sqlite_where=sa.text("status IN ('reserved', 'evicting', 'tombstone')"),
            postgresql_where=sa.text("status IN ('reserved', 'evicting', 'tombstone')"),
        )
        batch_op.create_index("ix_objects_runs", ["channel_id", "lock", "stream", "status", "number"], unique=False)

    op.create_table(
        "streams",
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("stream", sa.LargeBinary(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_streams_channel_id_channels")),
        sa.PrimaryKeyConstraint("channel_id", "stream", name=op.f("pk_streams")),
    )
    op.create_table(
        "strikes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_strikes_channel_id_channels")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_strikes")),
    )
    with op.batch_alter_table("strikes", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_strikes_channel_id_node_at"), ["channel_id", "node", "at"], unique=False)

    op.create_table(
        "wants",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("channel_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("stream", sa.LargeBinary(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("lock", sa.LargeBinary(), nullable=False),
        sa.Column("ranges", sa.JSON(), nullable=False),
        sa.Column("window", sa.Integer(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("keep", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("heard_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["channel_id"], ["channels.id"], name=op.f("fk_wants_channel_id_channels")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_wants")),
        sa.UniqueConstraint("channel_id", "stream", "node", name=op.f("uq_wants_channel_id_stream_node")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("wants", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_wants_until"), ["until"], unique=False)

    op.create_table(
        "grants",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("grant", sa.LargeBinary(), nullable=False),
        sa.Column("object_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.Column("put_until", sa.Double(), nullable=False),
        sa.Column("granted_at", sa.Double(), nullable=False),
        sa.Column("accepted_at", sa.Double(), nullable=False),
        sa.Column("sent", sa.BigInteger(), nullable=False),
        sa.Column("sent_at", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["object_id"], ["objects.id"], name=op.f("fk_grants_object_id_objects"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
        sa.UniqueConstraint("grant", name=op.f("uq_grants_grant")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("grants", schema=None) as batch_op:
        batch_op.create_index(
            "ix_grants_live_lease_until",
            ["lease_until"],
            unique=False,
            sqlite_where=sa.text("status IN ('accepted', 'offered')"),
            postgresql_where=sa.text("status IN ('accepted', 'offered')"),
        )
        batch_op.create_index(
            "ix_grants_live_session",
            ["node", "session"],
            unique=False,
            sqlite_where=sa.text("status IN ('accepted', 'offered')"),
            postgresql_where=sa.text("status IN ('accepted', 'offered')"),
        )
        batch_op.create_index(batch_op.f("ix_grants_object_id"), ["object_id"], unique=False)
        batch_op.create_index(
            "uq_grants_live_object_id",
            ["object_id"],
            unique=True,
            sqlite_where=sa.text("status IN ('accepted', 'offered')"),
            postgresql_where=sa.text("status IN ('accepted', 'offered')"),
        )

    op.create_table(
        "reads",
        sa.Column("object_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.Column("got", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["object_id"], ["objects.id"], name=op.f("fk_reads_object_id_objects"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("object_id", "node", name=op.f("pk_reads")),
    )
    op.create_table(
        "redemptions",
        sa.Column("invite", sa.Text(), nullable=False),
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["invite"], ["invites.id"], name=op.f("fk_redemptions_invite_invites")),
        sa.ForeignKeyConstraint(["node"], ["nodes.public"], name=op.f("fk_redemptions_node_nodes")),
        sa.PrimaryKeyConstraint("invite", "node", name=op.f("pk_redemptions")),
    )


def downgrade() -> None:
    op.drop_table("redemptions")
    op.drop_table("reads")
    with op.batch_alter_table("grants", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_grants_live_object_id",
            sqlite_where=sa.text("status IN ('accepted', 'offered')"),
            postgresql_where=sa.text("status IN ('accepted', 'offered')"),
        )
        batch_op.drop_index(batch_op.f("ix_grants_object_id"))
        batch_op.drop_index(
            "ix_grants_live_session",
            sqlite_where=sa.text("status IN ('accepted', 'offered')"),
            postgresql_where=sa.text("status IN ('accepted', 'offered')"),
        )
        batch_op.drop_index(
            "ix_grants_live_lease_until",
            sqlite_where=sa.text("status IN ('accepted', 'offered')"),
            postgresql_where=sa.text("status IN ('accepted', 'offered')"),
        )

    op.drop_table("grants")
    with op.batch_alter_table("wants", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_wants_until"))

    op.drop_table("wants")
    with op.batch_alter_table("strikes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_strikes_channel_id_node_at"))

    op.drop_table("strikes")
    op.drop_table("streams")
    with op.batch_alter_table("objects", schema=None) as batch_op:
        batch_op.drop_index("ix_objects_runs")
        batch_op.drop_index(
            "ix_objects_restless",
            sqlite_where=sa.text("status IN ('reserved', 'evicting', 'tombstone')"),
            postgresql_where=sa.text("status IN ('reserved', 'evicting', 'tombstone')"),
        )
        batch_op.drop_index(
            "ix_objects_ready", sqlite_where=sa.text("status = 'ready'"), postgresql_where=sa.text("status = 'ready'")
        )

    op.drop_table("objects")
    with op.batch_alter_table("memberships", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_memberships_node"))

    op.drop_table("memberships")
    with op.batch_alter_table("invites", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_invites_channel_id"))

    op.drop_table("invites")
    op.drop_table("holders")
    op.drop_table("channels")
    op.drop_table("settings")
    with op.batch_alter_table("nonces", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_nonces_expires"))

    op.drop_table("nonces")
    with op.batch_alter_table("nodes", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_nodes_name"))

    op.drop_table("nodes")
    op.drop_table("buckets")
    op.drop_table("audit")
