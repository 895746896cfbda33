"""Review items, leases, label events, proposals."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_labeling"
down_revision = "0001_streams"


def upgrade() -> None:
    op.create_table(
        "item",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("prediction_id", sa.String(length=512), nullable=False),
        sa.Column("rule", sa.String(length=128), nullable=False),
        sa.Column("policy", sa.String(length=64), nullable=False),
        sa.Column("selection_probability", sa.Float(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("required_n", sa.Integer(), nullable=False),
        sa.Column("event_time_us", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("input_hash", sa.String(length=32), nullable=False),
        sa.Column("task_hash", sa.String(length=32), nullable=False),
        sa.Column("same_as", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("cluster", sa.String(length=256), nullable=False),
        sa.Column("suspect", sa.String(length=160), nullable=True),
        sa.Column("subject_hash", sa.String(length=32), nullable=True),
        sa.Column("urgency", sa.Float(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("duplicates", sa.Integer(), nullable=False),
        sa.Column("skips", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Float(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("answer", sa.String(length=256), nullable=True),
        sa.Column("verdict", sa.String(length=32), nullable=True),
        sa.Column("lease_holder", sa.String(length=64), nullable=True),
        sa.Column("lease_until_us", sa.BigInteger(), nullable=True),
        sa.Column("lease_fence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["same_as"], ["item.id"], name=op.f("fk_item_same_as_item")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_item")),
        sa.UniqueConstraint("model", "prediction_id", "rule", name=op.f("uq_item_model_prediction_id_rule")),
    )
    with op.batch_alter_table("item", schema=None) as batch_op:
        batch_op.create_index("ix_item_age", ["model", "state", "id"], unique=False)
        batch_op.create_index("ix_item_cluster", ["model", "cluster", "state", "event_time_us"], unique=False)
        batch_op.create_index(
            "ix_item_lease",
            ["model", "lease_until_us"],
            unique=False,
            sqlite_where=sa.text("lease_until_us IS NOT NULL"),
            postgresql_where=sa.text("lease_until_us IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_item_queue",
            ["model", "state", "rank", "id"],
            unique=False,
            sqlite_where=sa.text("lease_until_us IS NULL"),
            postgresql_where=sa.text("lease_until_us IS NULL"),
        )
        batch_op.create_index("ix_item_task", ["model", "task_hash"], unique=False)

    op.create_table(
        "item_cluster",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("cluster", sa.String(length=256), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("unpredictable", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("model", "cluster", name=op.f("pk_item_cluster")),
    )
    op.create_table(
        "label_chain",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_label_chain")),
    )
    op.create_table(
        "label_incident",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("incident_id", sa.String(length=128), nullable=False),
        sa.Column("feature", sa.String(length=128), nullable=True),
        sa.Column("from_us", sa.BigInteger(), nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("position", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("model", "incident_id", name=op.f("pk_label_incident")),
    )
    op.create_table(
        "proposal",
        sa.Column("proposal_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("verdict", sa.String(length=32), nullable=False),
        sa.Column("cause", sa.String(length=256), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.Column("decided_us", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", sa.String(length=64), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("proposal_id", name=op.f("pk_proposal")),
    )
    with op.batch_alter_table("proposal", schema=None) as batch_op:
        batch_op.create_index("ix_proposal_cause", ["model", "cause", "verdict"], unique=False)

    op.create_table(
        "reviewer",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("pseudonym", sa.String(length=64), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_reviewer")),
        sa.UniqueConstraint("pseudonym", name=op.f("uq_reviewer_pseudonym")),
    )
    op.create_table(
        "annotation",
        sa.Column("item", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("reviewer", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("answer", sa.String(length=256), nullable=True),
        sa.Column("verdict", sa.String(length=32), nullable=True),
        sa.Column("cause", sa.String(length=256), nullable=True),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["item"], ["item.id"], name=op.f("fk_annotation_item_item")),
        sa.PrimaryKeyConstraint("item", "reviewer", name=op.f("pk_annotation")),
    )
    with op.batch_alter_table("annotation", schema=None) as batch_op:
        batch_op.create_index("ix_annotation_cause", ["model", "cause", "verdict"], unique=False)

    op.create_table(
        "item_occurrence",
        sa.Column("item", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("occurrence", sa.String(length=256), nullable=False),
        sa.ForeignKeyConstraint(["item"], ["item.id"], name=op.f("fk_item_occurrence_item_item")),
        sa.PrimaryKeyConstraint("item", "occurrence", name=op.f("pk_item_occurrence")),
    )
    op.create_table(
        "kept_decision",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("reviewer", sa.String(length=64), nullable=False),
        sa.Column("item", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["item"], ["item.id"], name=op.f("fk_kept_decision_item_item")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_kept_decision")),
    )
    with op.batch_alter_table("kept_decision", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_kept_decision_reviewer"), ["reviewer"], unique=False)

    op.create_table(
        "label_event",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.String(length=192), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("item", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("prev_hash", sa.String(length=64), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["item"], ["item.id"], name=op.f("fk_label_event_item_item")),
        sa.PrimaryKeyConstraint("model", "seq", name=op.f("pk_label_event")),
        sa.UniqueConstraint("event_id", name=op.f("uq_label_event_event_id")),
    )
    with op.batch_alter_table("label_event", schema=None) as batch_op:
        batch_op.create_index("ix_label_event_actor", ["model", "actor", "seq"], unique=False)
        batch_op.create_index(batch_op.f("ix_label_event_item"), ["item"], unique=False)

    op.create_table(
        "proposal_support",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("proposal_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["proposal_id"], ["proposal.proposal_id"], name=op.f("fk_proposal_support_proposal_id_proposal")
        ),
        sa.PrimaryKeyConstraint("model", "seq", name=op.f("pk_proposal_support")),
    )
    with op.batch_alter_table("proposal_support", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_proposal_support_proposal_id"), ["proposal_id"], unique=False)
