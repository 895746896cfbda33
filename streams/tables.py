"""Tables of the running system: merged summaries, windows, the monitor's state, alerts, dead letters."""

from __future__ import annotations

import sqlalchemy as sa

from schemas.database import metadata
from schemas.database.outbox import outbox  # belongs to every database

__all__ = [
    "alert",
    "dead_letter",
    "drift_day",
    "incident_action",
    "monitor_state",
    "notification",
    "open_summary",
    "outbox",
    "progress",
    "silence",
    "source_partition",
    "window",
]

source_partition = sa.Table(
    "source_partition",
    metadata,
    sa.Column("cluster", sa.String(64), primary_key=True),
    sa.Column("topic", sa.String(249), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("folded", sa.BigInteger, nullable=False, doc="every segment below this offset is in the windows"),
    sa.Column("end", sa.BigInteger, nullable=False, doc="first offset that is in no merged summary"),
    sa.Column("watermark_us", sa.BigInteger),
    sa.Column("counters", sa.JSON, nullable=False, doc="records by what became of them, over folded segments"),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
)

open_summary = sa.Table(
    "open_summary",
    metadata,
    sa.Column("cluster", sa.String(64), primary_key=True),
    sa.Column("topic", sa.String(249), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("end", sa.BigInteger, nullable=False),
    sa.Column("summary", sa.LargeBinary, nullable=False, doc="the event's Avro body"),
)

window = sa.Table(
    "window",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(128), primary_key=True),
    sa.Column("role", sa.String(32), primary_key=True),
    sa.Column("slice", sa.String(256), primary_key=True),
    sa.Column("axis", sa.String(8), primary_key=True),
    sa.Column("window_us", sa.BigInteger, primary_key=True, index=True),
    sa.Column("profile", sa.String(64), primary_key=True, server_default="", doc="whose cells the codes are"),
    sa.Column("counts", sa.LargeBinary, nullable=False, doc="codes and counts, see streams.merging.pack"),
)

monitor_state = sa.Table(
    "monitor_state",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("evaluated_us", sa.BigInteger, nullable=False),
    sa.Column("learning", sa.JSON, doc="what is silent because too little is known yet, see Monitor.learning"),
    sa.Column("snapshot", sa.LargeBinary, nullable=False),
)

drift_day = sa.Table(
    "drift_day",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(128), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True, doc="local"),
    sa.Column("evidence", sa.JSON, nullable=False, doc="slice: field: |z| of channel D and its line"),
)

staleness = sa.Table(
    "staleness",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(128), nullable=False),
    sa.Column("looked_us", sa.BigInteger, nullable=False, doc="the clock's"),
    sa.Column("reading", sa.JSON, nullable=False, doc="every feature against training, see streams.logic.staleness"),
)

progress = sa.Table(
    "progress",
    metadata,
    sa.Column("cluster", sa.String(64), primary_key=True),
    sa.Column("judged_us", sa.BigInteger, nullable=False, doc="event time up to which alerts and triggers were judged"),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
)

alert = sa.Table(
    "alert",
    metadata,
    sa.Column("alert_id", sa.String(128), primary_key=True),
    sa.Column("incident_id", sa.String(128), nullable=False, index=True),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("version", sa.String(128), nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("channel", sa.String(16), nullable=False),
    sa.Column("subject", sa.String(256), nullable=False, doc="feature or metric"),
    sa.Column("slice", sa.String(256), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("closed_us", sa.BigInteger),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
)

incident_action = sa.Table(
    "incident_action",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("incident_id", sa.String(128), nullable=False, index=True),
    sa.Column("action", sa.String(16), nullable=False, doc="acknowledged or closed"),
    sa.Column("verdict", sa.String(16), doc="of a closing: fixed, false_alarm or accepted"),
    sa.Column("who", sa.String(128), nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False, doc="the clock's"),
)

silence = sa.Table(
    "silence",
    metadata,
    sa.Column("silence_id", sa.String(16), primary_key=True),
    sa.Column("model", sa.String(128), doc="of what is silenced; null: any"),
    sa.Column("channel", sa.String(16)),
    sa.Column("subject", sa.String(256)),
    sa.Column("slice", sa.String(256)),
    sa.Column("who", sa.String(128), nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("from_us", sa.BigInteger, nullable=False, doc="the clock's, as the end"),
    sa.Column("until_us", sa.BigInteger, nullable=False),
)

notification = sa.Table(
    "notification",
    metadata,
    sa.Column("alert_id", sa.String(128), primary_key=True),
    sa.Column("notifier", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, doc="waiting, sent, failed, silenced or acknowledged"),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("queued_us", sa.BigInteger, nullable=False),
    sa.Column("due_us", sa.BigInteger, nullable=False, index=True, doc="when it is tried next"),
    sa.Column("sent_us", sa.BigInteger),
    sa.Column("error", sa.Text),
)

dead_letter = sa.Table(
    "dead_letter",
    metadata,
    sa.Column("cluster", sa.String(64), primary_key=True),
    sa.Column("topic", sa.String(249), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True),
    sa.Column("reason", sa.String(64), nullable=False, index=True),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False, index=True, doc="the record's broker timestamp"),
    sa.Column("value_bytes", sa.BigInteger, doc="length of the value, -1 of null; null of the control plane's"),
    sa.Column("letter_partition", sa.Integer, doc="where its bytes are on the topic dead-letters"),
    sa.Column("letter_offset", sa.BigInteger),
    sa.Column("replay_of", sa.String(512), index=True, doc="CLUSTER/TOPIC/PARTITION/OFFSET of the first"),
    sa.Column("replays", sa.Integer, nullable=False, server_default="0", doc="how often it was sent again"),
    sa.Column("replayed_us", sa.BigInteger, doc="when last"),
    sa.Column("replayed_to", sa.String(300), doc="TOPIC/PARTITION/OFFSET of what was sent last"),
)
