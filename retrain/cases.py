"""Failures that were fixed once must stay fixed: the permanent regression cases of a model.

A prediction that people reviewed (they gave its label, or said that an input's meaning had changed), that the champion
had wrong and that a promoted version has right, becomes a case. A challenger that breaks one is refused by name unless
a person waived the case with a reason. A broken input makes no case: no model can be asked to be right about it.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl
import sqlalchemy as sa

from retrain.errors import UnknownVersionError
from retrain.joined import KIND_TYPES
from retrain.labels import LabelFacts
from retrain.tables import regression_case
from schemas.contract import Contract
from schemas.database import write

FIXABLE = frozenset({"meaning_changed"})


def case_rows(
    connection: sa.Connection, contract: Contract, rows: pl.DataFrame, facts: LabelFacts
) -> pl.DataFrame | None:
    """Cases that stand, and reviewed failures that may become cases, as one table; None when there are neither.

    ``@is_fixed`` tells them apart.
    """
    names = list(contract.feature_names)
    kinds = {f.name: KIND_TYPES[f.kind] for f in contract.fields}
    schema = {"prediction_id": pl.String, "event_time": pl.Int64} | kinds | {"@y": pl.Float64}
    query = (
        sa.select(regression_case)
        .where(regression_case.c.model == contract.model, regression_case.c.waived_by.is_(None))
        .order_by(regression_case.c.prediction_id)
    )
    known = [
        {"prediction_id": row.prediction_id, "event_time": row.event_time_us, "@y": row.y}
        | {name: row.features.get(name) for name in names}
        for row in connection.execute(query)
    ]
    fixed = pl.DataFrame(known, schema=schema).with_columns(pl.lit(value=True).alias("@is_fixed"))
    reviewed = [p for p, d in facts.decided.items() if d.verdict in FIXABLE or d.answer is not None]
    new = (
        rows.filter(
            pl.col("prediction_id").is_in(reviewed), pl.col("@split").is_in(["train", "gate"]), _was_wrong(contract)
        )
        .join(fixed.select("prediction_id"), on="prediction_id", how="anti")
        .sort("prediction_id")
        .select([*schema])
        .with_columns(pl.lit(value=False).alias("@is_fixed"))
    )
    both = pl.concat([fixed, new])
    return None if both.is_empty() else both


def _was_wrong(contract: Contract) -> pl.Expr:
    """Whether the served answer was not the right one."""
    target = contract.target
    if target.kind == "regression":
        return pl.lit(value=False)  # a value has no right and wrong of its own
    if target.kind == "binary":
        return (pl.col("served_score") >= 0.5) != (pl.col("@y") == 1)
    numbers = {name: float(at) for at, name in enumerate(target.labels)}
    return pl.col("served_label").replace_strict(numbers, default=None, return_dtype=pl.Float64) != pl.col("@y")


def write_cases(cases: pl.DataFrame | None, folder: Path) -> Path | None:
    """The cases as a Parquet file for the trainers."""
    if cases is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cases.parquet"
    cases.write_parquet(path)
    return path


def add_cases(
    connection: sa.Connection,
    contract: Contract,
    cases: pl.DataFrame,
    fixed: tuple[str, ...],
    facts: LabelFacts,
    *,
    failed_version: str,
    fixed_version: str,
    moment_us: int,
) -> int:
    """Make permanent what a promoted version fixed; returns how many."""
    found = cases.filter(pl.col("prediction_id").is_in(list(fixed)), ~pl.col("@is_fixed"))
    for row in found.iter_rows(named=True):
        name = row["prediction_id"]
        values = {
            "model": contract.model,
            "prediction_id": name,
            "event_time_us": row["event_time"],
            "features": {feature: row[feature] for feature in contract.feature_names},
            "y": row["@y"],
            "failed_version": failed_version,
            "fixed_version": fixed_version,
            "verdict": facts.decided[name].verdict or "answer",
            "created_us": moment_us,
        }
        connection.execute(sa.insert(regression_case).values(values))
    return found.height


def waive_case(engine: sa.Engine, model: str, prediction_id: str, *, actor: str, reason: str) -> None:
    """A person decides that a fixed failure may come back.

    Raises
    ------
    UnknownVersionError
        If there is no such case.
    """
    with write(engine) as connection:
        done = connection.execute(
            sa.update(regression_case)
            .where(regression_case.c.model == model, regression_case.c.prediction_id == prediction_id)
            .values(waived_by=actor, waived_reason=reason)
        )
        if done.rowcount == 0:
            raise UnknownVersionError(
                f"The model '{model}' has no fixed failure '{prediction_id}'.", action="See the gate's report."
            )
