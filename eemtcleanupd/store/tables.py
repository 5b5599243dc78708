"""Definitions of the ledger's tables.  Times are UTC in the format of SQLite's CURRENT_TIMESTAMP."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, String, Table, Text, func, text

from eemtcleanupd.store.column_types import RawText

METADATA = MetaData()
RUNS = Table(
    "cleanup_runs",
    METADATA,
    Column("id", String, primary_key=True),
    Column("number", Integer),
    Column("started_at", String, nullable=False),
    Column("finished_at", String),
    Column("trigger", String),
    Column("user", String),
    Column("host", String),
    Column("pid", Integer),
    Column("policy", Text),
    Column("outcome", String),
    Column("successful", Integer, server_default=text("0")),
    Column("failed", Integer, server_default=text("0")),
    Column("orphans", Integer, server_default=text("0")),
    Column("skipped", Integer, server_default=text("0")),
    Column("errors", Integer, server_default=text("0")),
    Column("bytes_freed", BigInteger, server_default=text("0")),
    Column("error", Text),
    Column("bytes_trashed", BigInteger, server_default=text("0")),
    Column("purge_after", String),
)
INTENTS = Table(
    "cleanup_intents",
    METADATA,
    Column("id", String, primary_key=True),
    Column("run_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False),
    Column("job_id", RawText),
    Column("status", RawText),
    Column("artifacts", Text, nullable=False),
    Column("bytes_freed", BigInteger, nullable=False, server_default=text("0")),
    Column("purge_after", String),
    Column("size_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("error", Text),
    Column("created_at", String, nullable=False),
    Column("is_purging", Integer, nullable=False, server_default=text("0")),
)
LOG = Table(
    "cleanup_log",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("timestamp", String, server_default=func.current_timestamp()),
    Column("run_id", String, index=True),
    Column("job_id", RawText),
    Column("status", RawText),
    Column("action", String),
    Column("bytes_freed", BigInteger),
    Column("message", Text),
    Column("bytes_trashed", BigInteger, server_default=text("0")),
)
AUDIT = Table(
    "cleanup_audit",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("timestamp", String, server_default=func.current_timestamp()),
    Column("job_id", RawText),
    Column("action", String),
    Column("space_freed_mb", Integer),
    Column("user", String),
)
AUDIT_ANCHORS = Table(
    "cleanup_audit_anchors",
    METADATA,
    Column("log", RawText, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", String, nullable=False),
    Column("updated_at", String),
)
HOLDS = Table(
    "cleanup_holds",
    METADATA,
    Column("job_id", RawText, primary_key=True),
    Column("reason", RawText),
    Column("owner", String),
    Column("until", String),
    Column("created_at", String),
)
ACKNOWLEDGEMENTS = Table(
    "cleanup_acknowledgements",
    METADATA,
    Column("job_id", RawText, primary_key=True),
    Column("warning", RawText),
    Column("reason", RawText),
    Column("owner", String),
    Column("created_at", String),
)
SIZES = Table(
    "cleanup_sizes",
    METADATA,
    Column("job_id", RawText, primary_key=True),
    Column("status_class", String),
    Column("bytes", BigInteger),
    Column("measured_at", String),
)
STORAGE = Table(
    "cleanup_storage",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("timestamp", String),
    Column("run_id", String),
    Column("successful_bytes", BigInteger),
    Column("failed_bytes", BigInteger),
    Column("free_bytes", BigInteger),
    Column("total_bytes", BigInteger),
    Column("capacity_level", Integer),
)
ROOTS = Table(
    "cleanup_roots",
    METADATA,
    Column("name", String, primary_key=True),
    Column("path", RawText),
    Column("device", BigInteger),
    Column("inode", BigInteger),
    Column("marker", String),
    Column("job_rows", Integer),
)
TOTALS = Table(
    "cleanup_totals",
    METADATA,
    Column("name", String, primary_key=True),
    Column("label", String, primary_key=True),
    Column("value", Float, nullable=False),
)
OUTBOX = Table(
    "cleanup_outbox",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("notifier", String, nullable=False, index=True),
    Column("event", String, nullable=False),
    Column("payload", Text, nullable=False),
    Column("created_at", String, nullable=False),
    Column("due_at", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    Column("recipients", Text),  # JSON: those whom a retry is for; NULL means all
)
DELIVERY_OUTCOMES = ("delivered", "retried", "failed", "dropped")
"""How an attempt to send a message can end: ``failed`` after all retries, ``dropped`` from a full queue."""
NOTIFIERS = Table(
    "cleanup_notifiers",
    METADATA,
    Column("name", String, primary_key=True),
    *(Column(outcome, Integer, nullable=False) for outcome in DELIVERY_OUTCOMES),
    Column("last_delivered_at", String),
    Column("last_error", Text),
    Column("last_error_at", String),
)
