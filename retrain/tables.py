"""Tables of retraining: datasets, runs, decisions, versions, the ledger of aliases, what reviewers said."""

from __future__ import annotations

import sqlalchemy as sa

from schemas.database import metadata

__all__ = [
    "alias_event",
    "dataset",
    "label_fact",
    "model_version",
    "regression_case",
    "retrain_decision",
    "retrain_lease",
    "retrain_run",
    "run_candidate",
]

_SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")

dataset = sa.Table(
    "dataset",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True, doc="SHA-256 of the manifest in canonical JSON"),
    sa.Column("model", sa.String(128), nullable=False, index=True),
    sa.Column("path", sa.Text, nullable=False, doc="folder, relative to the state directory"),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("as_of_us", sa.BigInteger, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
)

retrain_run = sa.Table(
    "retrain_run",
    metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(128), nullable=False, index=True),
    sa.Column("trigger", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, doc="running, promoted, passed, refused, failed or dead"),
    sa.Column("as_of_us", sa.BigInteger, nullable=False, doc="event time that the run knows of"),
    sa.Column("started_us", sa.BigInteger, nullable=False),
    sa.Column("finished_us", sa.BigInteger),
    sa.Column("dataset", sa.String(64)),
    sa.Column("champion", sa.String(128), doc="the deployed version it was judged against"),
    sa.Column("version", sa.String(128), doc="the version it made, if one passed"),
    sa.Column("detail", sa.JSON, nullable=False),
)

retrain_lease = sa.Table(
    "retrain_lease",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("run_id", sa.String(64)),
    sa.Column("holder", sa.String(256), doc="host, process id and start time"),
    sa.Column(
        "fence", sa.BigInteger, nullable=False, doc="grows with every claim; a write with an older one is refused"
    ),
    sa.Column("until_us", sa.BigInteger, nullable=False, doc="processing time"),
)

run_candidate = sa.Table(
    "run_candidate",
    metadata,
    sa.Column("run_id", sa.String(64), sa.ForeignKey("retrain_run.run_id"), primary_key=True),
    sa.Column("recipe", sa.String(128), primary_key=True),
    sa.Column("verdict", sa.String(16), nullable=False, doc="pass, fail, inconclusive or error"),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("artifact_sha256", sa.String(64)),
    sa.Column("report", sa.Text, nullable=False, doc="path of the JSON report, relative to the state directory"),
)

retrain_decision = sa.Table(
    "retrain_decision",
    metadata,
    sa.Column("id", _SERIAL, primary_key=True, autoincrement=True),
    sa.Column("model", sa.String(128), nullable=False, index=True),
    sa.Column("time_us", sa.BigInteger, nullable=False, doc="event time of the first evaluation with this answer"),
    sa.Column("last_us", sa.BigInteger, nullable=False, doc="event time of the newest equal evaluation"),
    sa.Column("times", sa.BigInteger, nullable=False, doc="how many equal evaluations in a row"),
    sa.Column("is_yes", sa.Boolean, nullable=False),
    sa.Column("trigger", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("run_id", sa.String(64)),
)

model_version = sa.Table(
    "model_version",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("version", sa.String(128), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("artifact_sha256", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False, doc="folder, relative to the state directory"),
    sa.Column("dataset", sa.String(64)),
    sa.Column("base_table", sa.Text, doc="Parquet file of the first training rows, relative to the state directory"),
    sa.Column("base_sha256", sa.String(64)),
    sa.Column("parent", sa.String(128)),
    sa.Column("run_id", sa.String(64)),
    sa.Column("trainer", sa.String(64), nullable=False),
    sa.Column("recipe", sa.JSON, nullable=False),
    sa.Column("columns", sa.JSON, nullable=False, doc="columns that the recipe added, and their constants for serving"),
    sa.Column("constants", sa.JSON, nullable=False),
    sa.Column("gate", sa.JSON, nullable=False, doc="the gate's report, or why there is none"),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column(
        "reference", sa.JSON, nullable=False, doc="loss by day when it was approved: the floor of its successors"
    ),
    sa.Column("trained_until_us", sa.BigInteger, nullable=False),
    sa.Column("approval", sa.String(16), nullable=False, doc="approved or revoked"),
    sa.Column("approval_reason", sa.Text, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("model", "number"),
)

alias_event = sa.Table(
    "alias_event",
    metadata,
    sa.Column("id", _SERIAL, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(64), nullable=False, unique=True),
    sa.Column("model", sa.String(128), nullable=False),
    sa.Column("alias", sa.String(32), nullable=False),
    sa.Column("version", sa.String(128), nullable=False),
    sa.Column("previous", sa.String(128)),
    sa.Column("action", sa.String(16), nullable=False, doc="promoted or rolled-back"),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["model", "version"], ["model_version.model", "model_version.version"]),
    sa.Index("ix_alias_event_model_alias_time_us", "model", "alias", "time_us"),
)

regression_case = sa.Table(
    "regression_case",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("prediction_id", sa.String(256), primary_key=True),
    sa.Column("event_time_us", sa.BigInteger, nullable=False),
    sa.Column("features", sa.JSON, nullable=False),
    sa.Column("y", sa.Float, nullable=False, doc="the right answer: 1 or 0, the label's number, or the value"),
    sa.Column("failed_version", sa.String(128), nullable=False),
    sa.Column("fixed_version", sa.String(128), nullable=False),
    sa.Column("verdict", sa.String(32), nullable=False),
    sa.Column("waived_by", sa.String(128)),
    sa.Column("waived_reason", sa.Text),
    sa.Column("created_us", sa.BigInteger, nullable=False),
)

label_fact = sa.Table(
    "label_fact",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False, doc="place in the model's chain of events"),
    sa.Column("event_id", sa.String(192), nullable=False, unique=True),
    sa.Column("record", sa.JSON, nullable=False, doc="the event of the labels topic, as it came"),
)
