"""Definitions of the ledger's tables.  Times are UTC in the format of SQLite's CURRENT_TIMESTAMP."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, String, Table, Text, func, text

from eemtcleanupd.store.values import BigNumber, LongText, Number, RawText, ShortText

METADATA = MetaData()
RUNS = Table(
    "cleanup_runs",
    METADATA,
    Column("id", ShortText, primary_key=True),
    Column("number", Number),
    Column("started_at", ShortText, nullable=False),
    Column("finished_at", ShortText),
    Column("trigger", ShortText),
    Column("user", ShortText),
    Column("host", ShortText),
    Column("pid", Number),
    Column("policy", LongText),
    Column("outcome", ShortText),
    Column("successful", Number, server_default=text("0")),
    Column("failed", Number, server_default=text("0")),
    Column("orphans", Number, server_default=text("0")),
    Column("skipped", Number, server_default=text("0")),
    Column("errors", Number, server_default=text("0")),
    Column("bytes_freed", BigNumber, server_default=text("0")),
    Column("error", LongText),
    Column("bytes_trashed", BigNumber, server_default=text("0")),
    Column("purge_after", ShortText),
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
    Column("bytes_freed", BigNumber, nullable=False, server_default=text("0")),
    Column("purge_after", String),
    Column("size_bytes", BigNumber, nullable=False, server_default=text("0")),
    Column("error", LongText),
    Column("created_at", String, nullable=False),
    Column("is_purging", Number, nullable=False, server_default=text("0")),
)
LOG = Table(
    "cleanup_log",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("timestamp", ShortText, server_default=func.current_timestamp()),
    Column("run_id", ShortText, index=True),
    Column("job_id", RawText),
    Column("status", RawText),
    Column("action", ShortText),
    Column("bytes_freed", BigNumber),
    Column("message", LongText),
    Column("bytes_trashed", BigNumber, server_default=text("0")),
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
    Column("owner", ShortText),
    Column("until", ShortText),
    Column("created_at", ShortText),
)
ACKNOWLEDGEMENTS = Table(
    "cleanup_acknowledgements",
    METADATA,
    Column("job_id", RawText, primary_key=True),
    Column("warning", RawText),
    Column("reason", RawText),
    Column("owner", ShortText),
    Column("created_at", ShortText),
)
SIZES = Table(
    "cleanup_sizes",
    METADATA,
    Column("job_id", RawText, primary_key=True),
    Column("status_class", ShortText),
    Column("bytes", BigInteger),
    Column("measured_at", ShortText),
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
    Column("device", BigNumber),
    Column("inode", BigNumber),
    Column("marker", ShortText),
    Column("job_rows", Number),
)
TOTALS = Table(
    "cleanup_totals",
    METADATA,
    Column("name", ShortText, primary_key=True),
    Column("label", ShortText, primary_key=True),
    Column("value", Float, nullable=False),
)
OUTBOX = Table(
    "cleanup_outbox",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("notifier", ShortText, nullable=False, index=True),
    Column("event", ShortText, nullable=False),
    Column("payload", Text, nullable=False),
    Column("created_at", ShortText, nullable=False),
    Column("due_at", ShortText, nullable=False),
    Column("attempts", Number, nullable=False),
    Column("error", LongText),
    Column("recipients", Text),  # JSON: those whom a retry is for; NULL means all
)
DELIVERY_OUTCOMES = ("delivered", "retried", "failed", "dropped")
"""How an attempt to send a message can end: ``failed`` after all retries, ``dropped`` from a full queue."""
NOTIFIERS = Table(
    "cleanup_notifiers",
    METADATA,
    Column("name", ShortText, primary_key=True),
    *(Column(outcome, Number, nullable=False) for outcome in DELIVERY_OUTCOMES),
    Column("last_delivered_at", ShortText),
    Column("last_error", LongText),
    Column("last_error_at", ShortText),
)
