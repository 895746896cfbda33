"""Tables of the labeling store.

``label_event`` is the truth about what people decided and is only ever appended to. ``annotation``, ``proposal``,
``proposal_support`` and the columns ``state``, ``answer``, ``verdict``, ``skips`` and ``rank`` of ``item`` are
projections of it that :mod:`labeling.projection` can rebuild. Leases belong to no history: they are who holds what now.
"""

from __future__ import annotations

import sqlalchemy as sa

from schemas.database import metadata
from schemas.database.outbox import outbox  # every label event goes through it

__all__ = [
    "annotation",
    "incident",
    "item",
    "item_cluster",
    "item_occurrence",
    "kept_decision",
    "label_chain",
    "label_event",
    "outbox",
    "proposal",
    "proposal_support",
    "reviewer",
]

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

FREE, LEASED = sa.text("lease_until_us IS NULL"), sa.text("lease_until_us IS NOT NULL")

item = sa.Table(
    "item",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=False),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("prediction_id", sa.String(512), nullable=False),
    sa.Column("rule", sa.String(128), nullable=False),
    sa.Column("policy", sa.String(64), nullable=False, doc="fingerprint of the rules that picked it"),
    sa.Column("selection_probability", sa.Float, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False, doc="answer or verdict"),
    sa.Column("required_n", sa.Integer, nullable=False),
    sa.Column("event_time_us", sa.BigInteger, nullable=False, doc="of the prediction"),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("input_hash", sa.String(32), nullable=False),
    sa.Column("task_hash", sa.String(32), nullable=False),
    sa.Column("same_as", ID, sa.ForeignKey("item.id"), doc="the item that asks the same question"),
    sa.Column("cluster", sa.String(256), nullable=False, doc="items that look alike: rule and suspected feature"),
    sa.Column("suspect", sa.String(160), doc="the feature that disagrees with the truth feed or the contract, and how"),
    sa.Column("subject_hash", sa.String(32), doc="keyed hash of whom it is about"),
    sa.Column("urgency", sa.Float, nullable=False, doc="priority before duplicates and skips"),
    sa.Column("payload", sa.JSON, nullable=False, doc="features, score, label, truth, facts, note, position"),
    sa.Column("duplicates", sa.Integer, nullable=False),
    sa.Column("skips", sa.Integer, nullable=False),
    sa.Column("rank", sa.Float, nullable=False, doc="lowest comes first: minus the priority"),
    sa.Column("state", sa.String(16), nullable=False, doc="open, flagged, done, duplicate"),
    sa.Column("answer", sa.String(256), doc="consensus of the annotations once done"),
    sa.Column("verdict", sa.String(32), doc="consensus of the annotations once done"),
    sa.Column("lease_holder", sa.String(64), doc="pseudonym"),
    sa.Column("lease_until_us", sa.BigInteger, doc="None: free to be claimed"),
    sa.Column("lease_fence", sa.BigInteger, nullable=False, doc="grows with every claim; part of the token"),
    sa.UniqueConstraint("model", "prediction_id", "rule"),
    # A leased item leaves the queue's index, so that a claim never looks at what others hold.
    sa.Index("ix_item_queue", "model", "state", "rank", "id", sqlite_where=FREE, postgresql_where=FREE),
    sa.Index("ix_item_lease", "model", "lease_until_us", sqlite_where=LEASED, postgresql_where=LEASED),
    sa.Index("ix_item_age", "model", "state", "id"),
    sa.Index("ix_item_cluster", "model", "cluster", "state", "event_time_us"),
    sa.Index("ix_item_task", "model", "task_hash"),
)

item_occurrence = sa.Table(
    "item_occurrence",
    metadata,
    sa.Column("item", ID, sa.ForeignKey("item.id"), primary_key=True),
    sa.Column("occurrence", sa.String(256), primary_key=True, doc="so that a redelivery is not a second complaint"),
)

item_cluster = sa.Table(
    "item_cluster",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("cluster", sa.String(256), primary_key=True),
    sa.Column("size", sa.Integer, nullable=False, doc="items ever"),
    sa.Column("unpredictable", sa.Integer, nullable=False, doc="how often that verdict was given"),
)

reviewer = sa.Table(
    "reviewer",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("pseudonym", sa.String(64), nullable=False, unique=True),
    sa.Column("created_us", sa.BigInteger, nullable=False),
)

label_chain = sa.Table(
    "label_chain",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False, doc="of the newest event"),
    sa.Column("hash", sa.String(64), nullable=False),
)

label_event = sa.Table(
    "label_event",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("event_id", sa.String(192), nullable=False, unique=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("item", ID, sa.ForeignKey("item.id"), index=True),
    sa.Column("actor", sa.String(64), nullable=False, doc="pseudonym"),
    sa.Column("time_us", sa.BigInteger, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("prev_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Index("ix_label_event_actor", "model", "actor", "seq"),
)

annotation = sa.Table(
    "annotation",
    metadata,
    sa.Column("item", ID, sa.ForeignKey("item.id"), primary_key=True),
    sa.Column("reviewer", sa.String(64), primary_key=True, doc="pseudonym"),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False, doc="the event that it comes from"),
    sa.Column("kind", sa.String(16), nullable=False, doc="submitted, skipped or flagged"),
    sa.Column("answer", sa.String(256)),
    sa.Column("verdict", sa.String(32)),
    sa.Column("cause", sa.String(256)),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Float),
    sa.Index("ix_annotation_cause", "model", "cause", "verdict"),
)

proposal = sa.Table(
    "proposal",
    metadata,
    sa.Column("proposal_id", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("verdict", sa.String(32), nullable=False),
    sa.Column("cause", sa.String(256), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, doc="open, accepted, refused, withdrawn"),
    sa.Column("seq", sa.BigInteger, nullable=False, doc="the event that made it"),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("decided_us", sa.BigInteger),
    sa.Column("decided_by", sa.String(64)),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False, doc="feature, slice, incident, from, to, first position, rule"),
    sa.Index("ix_proposal_cause", "model", "cause", "verdict"),
)

proposal_support = sa.Table(
    "proposal_support",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False, doc="the submitted event"),
    sa.Column("proposal_id", sa.String(64), sa.ForeignKey("proposal.proposal_id"), nullable=False, index=True),
)

incident = sa.Table(
    "label_incident",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("incident_id", sa.String(128), primary_key=True),
    sa.Column("feature", sa.String(128), doc="None: quality or volume, not one input"),
    sa.Column("from_us", sa.BigInteger, nullable=False),
    sa.Column("until_us", sa.BigInteger, doc="None: still open"),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("position", sa.JSON, nullable=False, doc="cluster, topic, partition, offset of its first event, or {}"),
)

kept_decision = sa.Table(
    "kept_decision",
    metadata,
    sa.Column("id", ID, primary_key=True, autoincrement=True),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("reviewer", sa.String(64), nullable=False, index=True),
    sa.Column("item", ID, sa.ForeignKey("item.id"), nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False),
    sa.Column("body", sa.JSON, nullable=False, doc="the decision that came with a stale token"),
)
