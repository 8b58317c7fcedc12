"""The first tables: folders and records."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_TEXT = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_OF_FOLDER = sa.ForeignKey("ckpt_folders.folder_id", ondelete="CASCADE")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "ckpt_folders",
        sa.Column("folder_id", sa.Integer, primary_key=True),
        sa.Column("store", sa.String, nullable=False),
        sa.Column("path", sa.String, nullable=False),
        sa.Column("listed_seconds", sa.Float, nullable=False),
        sa.Column("folder_version", sa.String),
        sa.Column("record_count", sa.Integer, nullable=False),
        sa.Column("overview", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.UniqueConstraint("store", "path"),
    )
    op.create_table(
        "ckpt_records",
        sa.Column(
            "folder_id", sa.Integer, sa.ForeignKey("ckpt_folders.folder_id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("checkpoint_id", _TEXT, primary_key=True),
        sa.Column("version", _TEXT, nullable=False),
        sa.Column("is_listed", sa.Boolean, nullable=False),
        sa.Column("is_complete", sa.Boolean, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("timestamp_microseconds", sa.BigInteger, nullable=False),
        sa.Column("uid", _TEXT, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("model_name", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("healthy", sa.Boolean, nullable=False),
        sa.Column("tags", _TEXT, nullable=False),
        sa.Column("searched", _TEXT, nullable=False),
        sa.Column("metrics", _TEXT, nullable=False),
        sa.Column("record_digest", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Drop the tables: what is in them can be read again."""
    op.drop_table("ckpt_records")
    op.drop_table("ckpt_folders")
