"""Datasets, runs, decisions, model versions, alias events, what reviewers said."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_retrain"
down_revision = "0002_labeling"


def upgrade() -> None:
    op.create_table(
        "dataset",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("as_of_us", sa.BigInteger(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_dataset")),
    )
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_dataset_model"), ["model"], unique=False)

    op.create_table(
        "label_fact",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.String(length=192), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("model", "seq", name=op.f("pk_label_fact")),
        sa.UniqueConstraint("event_id", name=op.f("uq_label_fact_event_id")),
    )
    op.create_table(
        "model_version",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("artifact_sha256", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("dataset", sa.String(length=64), nullable=True),
        sa.Column("base_table", sa.Text(), nullable=True),
        sa.Column("base_sha256", sa.String(length=64), nullable=True),
        sa.Column("parent", sa.String(length=128), nullable=True),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("trainer", sa.String(length=64), nullable=False),
        sa.Column("recipe", sa.JSON(), nullable=False),
        sa.Column("columns", sa.JSON(), nullable=False),
        sa.Column("constants", sa.JSON(), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("reference", sa.JSON(), nullable=False),
        sa.Column("trained_until_us", sa.BigInteger(), nullable=False),
        sa.Column("approval", sa.String(length=16), nullable=False),
        sa.Column("approval_reason", sa.Text(), nullable=False),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", "version", name=op.f("pk_model_version")),
        sa.UniqueConstraint("model", "number", name=op.f("uq_model_version_model_number")),
    )
    op.create_table(
        "regression_case",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("prediction_id", sa.String(length=256), nullable=False),
        sa.Column("event_time_us", sa.BigInteger(), nullable=False),
        sa.Column("features", sa.JSON(), nullable=False),
        sa.Column("y", sa.Float(), nullable=False),
        sa.Column("failed_version", sa.String(length=128), nullable=False),
        sa.Column("fixed_version", sa.String(length=128), nullable=False),
        sa.Column("verdict", sa.String(length=32), nullable=False),
        sa.Column("waived_by", sa.String(length=128), nullable=True),
        sa.Column("waived_reason", sa.Text(), nullable=True),
        sa.Column("created_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", "prediction_id", name=op.f("pk_regression_case")),
    )
    op.create_table(
        "retrain_decision",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.Column("last_us", sa.BigInteger(), nullable=False),
        sa.Column("times", sa.BigInteger(), nullable=False),
        sa.Column("is_yes", sa.Boolean(), nullable=False),
        sa.Column("trigger", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_retrain_decision")),
    )
    with op.batch_alter_table("retrain_decision", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_retrain_decision_model"), ["model"], unique=False)

    op.create_table(
        "retrain_lease",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("holder", sa.String(length=256), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("until_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_retrain_lease")),
    )
    op.create_table(
        "retrain_run",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("trigger", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("as_of_us", sa.BigInteger(), nullable=False),
        sa.Column("started_us", sa.BigInteger(), nullable=False),
        sa.Column("finished_us", sa.BigInteger(), nullable=True),
        sa.Column("dataset", sa.String(length=64), nullable=True),
        sa.Column("champion", sa.String(length=128), nullable=True),
        sa.Column("version", sa.String(length=128), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_retrain_run")),
    )
    with op.batch_alter_table("retrain_run", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_retrain_run_model"), ["model"], unique=False)

    op.create_table(
        "alias_event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("alias", sa.String(length=32), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("previous", sa.String(length=128), nullable=True),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("time_us", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "version"],
            ["model_version.model", "model_version.version"],
            name=op.f("fk_alias_event_model_version_model_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_event")),
        sa.UniqueConstraint("event_id", name=op.f("uq_alias_event_event_id")),
    )
    with op.batch_alter_table("alias_event", schema=None) as batch_op:
        batch_op.create_index("ix_alias_event_model_alias_time_us", ["model", "alias", "time_us"], unique=False)

    op.create_table(
        "run_candidate",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("recipe", sa.String(length=128), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("artifact_sha256", sa.String(length=64), nullable=True),
        sa.Column("report", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["retrain_run.run_id"], name=op.f("fk_run_candidate_run_id_retrain_run")),
        sa.PrimaryKeyConstraint("run_id", "recipe", name=op.f("pk_run_candidate")),
    )
