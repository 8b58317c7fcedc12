"""The tables of the index. What is in them can be read again from the stores at any time."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

VERSION_TABLE = "ckpt_index_version"
"""Holds the migration that the tables are at."""

metadata = MetaData()

folders = Table(
    "ckpt_folders",
    metadata,
    Column("folder_id", Integer, primary_key=True),
    Column("store", String, nullable=False),
    Column("path", String, nullable=False),
    Column("listed_seconds", Float, nullable=False),
    Column("folder_version", String),
    Column("record_count", Integer, nullable=False),
    Column("overview", String, nullable=False),
    Column("digest", String, nullable=False),
    UniqueConstraint("store", "path"),
)
"""One row for each folder of records, with what lists of experiments show of it."""

# Numbers are as wide as in a manifest. Nothing orders text by the rules of a language.
_TEXT = String().with_variant(String(collation="C"), "postgresql")

records = Table(
    "ckpt_records",
    metadata,
    Column("folder_id", Integer, ForeignKey(folders.c.folder_id, ondelete="CASCADE"), primary_key=True),
    Column("checkpoint_id", _TEXT, primary_key=True),
    Column("version", _TEXT, nullable=False),
    Column("is_listed", Boolean, nullable=False),
    Column("is_complete", Boolean, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("timestamp_microseconds", BigInteger, nullable=False),
    Column("uid", _TEXT, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("model_name", _TEXT, nullable=False),
    Column("run_id", _TEXT),
    Column("pinned", Boolean, nullable=False),
    Column("healthy", Boolean, nullable=False),
    Column("tags", _TEXT, nullable=False),
    Column("searched", _TEXT, nullable=False),
    Column("metrics", _TEXT, nullable=False),
    Column("record_digest", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("record", LargeBinary, nullable=False),
)
"""One row for each record. Those of checkpoints that readers are shown are ``is_listed``."""
