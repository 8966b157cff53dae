"""The tables of a store. Times are seconds since 1970 (UTC); ids are text."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, text

SCHEMA_VERSION = 2

metadata = MetaData()

about = Table(
    "about",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

# Everything that used energy or changed who answers, one row each, append-only: what was asked of the node
# (`request`), audits (`audit`), training (`learning`), the node's own work (`node`), and experts that came and
# went (`promotion`, `demotion`, `refusal`, and `retirement` by hand). `note` says why in words.
ledger = Table(
    "ledger",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("task", String(64)),
    Column("model", String(256), nullable=False, default=""),
    Column("by", String(256), nullable=False, default=""),
    Column("expert", String(64)),
    Column("confidence", Float),
    Column("path", JSON),
    Column("status", Integer, nullable=False, default=200),
    Column("prompt_tokens", Integer, nullable=False, default=0),
    Column("completion_tokens", Integer, nullable=False, default=0),
    Column("seconds", Float, nullable=False, default=0.0),
    Column("cpu_seconds", Float, nullable=False, default=0.0),
    Column("joules", Float, nullable=False, default=0.0),
    Column("joules_low", Float, nullable=False, default=0.0),
    Column("joules_high", Float, nullable=False, default=0.0),
    Column("measured", Boolean, nullable=False, default=False),
    Column("co2_g", Float, nullable=False, default=0.0),
    Column("cost", Float, nullable=False, default=0.0),
    Column("note", Text),
    Column("key", String(32), nullable=False, server_default=""),  # whose request it was
    Index("ledger_at", "at"),
)

# System prompts, once each.
contexts = Table(
    "contexts",
    metadata,
    Column("group", String(128), primary_key=True),
    Column("model", String(256), nullable=False),
    Column("text", Text, nullable=False),
)

# What the big model answered. `coin` rows are a fair sample of the traffic: they calibrate and watch experts, and
# teach only experts that are calibrated on later ones. `expert` was in place when the request came, and
# `expert_answer` is what the user got from it (None: it was not sure, the big model answered). A row with `body`
# and no `answer` is an audit still due (where the body is empty: one that only a running node's memory holds). Of rows
# whose text is gone, input and answers are empty; `loss` stays.
experience = Table(
    "experience",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("group", String(128), nullable=False),
    Column("input", Text, nullable=False),
    Column("answer", Text),
    Column("alternatives", JSON),
    Column("coin", Boolean, nullable=False),
    Column("expert", String(64)),
    Column("expert_answer", Text),
    Column("body", Text),
    Column("task", String(64)),
    Column("key", String(32), nullable=False, server_default=""),
    Column("loss", Float),  # of an audited answer, so that the watch remembers it when the text is gone
    Index("experience_group_number", "group", "number"),
)
HOLDS_TEXT = text("(input <> '' OR answer IS NOT NULL OR expert_answer IS NOT NULL OR body <> '')")
"""Of rows of experience: those that have words of somebody's in them, which the sweeper finds by their age."""
Index("experience_text_at", experience.c.at, sqlite_where=HOLDS_TEXT, postgresql_where=HOLDS_TEXT)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("group", String(128), nullable=False, index=True),
    Column("model", String(256), nullable=False),
    Column("prefix", Text, nullable=False, default=""),
    Column("suffix", Text, nullable=False, default=""),
    Column("created", Float, nullable=False),
    Column("state", JSON, nullable=False),
)

experts = Table(
    "experts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("task", String(64), nullable=False, index=True),
    Column("status", String(16), nullable=False),  # active, retired, demoted, refused
    Column("folder", Text, nullable=False),
    Column("threshold", Float, nullable=False),
    Column("coverage", Float, nullable=False),
    Column("risk_bound", Float, nullable=False),
    Column("epsilon", Float, nullable=False),
    Column("delta", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("ended", Float),
    Column("reason", Text),
    Column("stale", Text),  # why it is to be learned again, such as rows that had to be forgotten
)

# Keys of the gateway: never the key itself, but the SHA-256 of it. `rules` are what it may do and spend.
keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
    Column("rules", JSON, nullable=False),
)
