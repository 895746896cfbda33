"""What became of one row in retraining: datasets that hold it, their runs and verdicts, versions that learnt from it.

Only reads: SQL, the datasets' Parquet files, and the artifacts of versions that are asked again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import sqlalchemy as sa

from retrain.artifacts import load_artifact
from retrain.columns import kept_rows, with_columns
from retrain.manifest import ROWS
from retrain.paths import Paths
from retrain.recipes import parse_recipe
from retrain.registry import CHAMPION, Version, version_of
from retrain.tables import alias_event, dataset, model_version, regression_case, retrain_run, run_candidate
from schemas.contract import Contract
from schemas.errors import FlywheelError
from schemas.times import format_us

ASKED_MAX = 8
"""Versions that are loaded and asked again: a second each at worst."""
LEARNT_SPLITS = ("train", "gate")
"""The version that serves is fitted on both, once its recipe has been judged."""


@dataclass(frozen=True)
class Row:
    """The row that is followed; ``features`` empty when its input was not found."""

    model: str
    prediction_id: str
    event_time_us: int | None
    features: Mapping[str, Any]


def datasets_with(connection: sa.Connection, paths: Paths, row: Row) -> list[dict[str, Any]]:
    """Datasets that hold the row, and in which place."""
    query = sa.select(dataset).where(dataset.c.model == row.model).order_by(dataset.c.as_of_us, dataset.c.created_us)
    found = []
    for known in connection.execute(query).all():
        file = paths.root / known.path / ROWS
        said = {"dataset": known.hash, "rows": known.rows, "as_of": format_us(known.as_of_us)}
        if not file.exists():
            found.append(said | {"split": None, "note": "its file is gone, so nobody can say whether it holds the row"})
            continue
        rows = pl.scan_parquet(file).filter(pl.col("prediction_id") == row.prediction_id).collect()
        for each in rows.iter_rows(named=True):
            own = {
                "split": each.get("@split"), "y": each.get("@y"), "weight": each.get("@weight"),
                "source": each.get("@source"), "verdict": each.get("@tag"), "event_time_us": each.get("event_time"),
            }  # fmt: skip
            found.append(said | own)
    return found


def runs_of(connection: sa.Connection, row: Row, hashes: Sequence[str]) -> list[dict[str, Any]]:
    """Runs on these datasets, with the gate's verdict on every challenger."""
    query = sa.select(retrain_run).where(retrain_run.c.model == row.model, retrain_run.c.dataset.in_(hashes))
    runs = connection.execute(query.order_by(retrain_run.c.as_of_us, retrain_run.c.started_us)).all()
    tried = sa.select(run_candidate).where(run_candidate.c.run_id.in_([run.run_id for run in runs]))
    candidates: dict[str, list[dict[str, Any]]] = {}
    for each in connection.execute(tried.order_by(run_candidate.c.recipe)):
        said = {name: getattr(each, name) for name in ("recipe", "verdict", "reason", "report")}
        candidates.setdefault(each.run_id, []).append(said)
    return [
        {
            "run_id": run.run_id, "trigger": run.trigger, "reason": run.reason, "state": run.state,
            "as_of": format_us(run.as_of_us), "dataset": run.dataset, "champion": run.champion,
            "version": run.version, "candidates": candidates.get(run.run_id, []),
        }
        for run in runs
    ]  # fmt: skip


def versions_of(connection: sa.Connection, model: str) -> list[Version]:
    """All versions, oldest first."""
    query = sa.select(model_version).where(model_version.c.model == model).order_by(model_version.c.number)
    return [version_of(each) for each in connection.execute(query)]


def learnt_from(versions: Sequence[Version], held: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Versions fitted on a dataset with the row, and whether their recipe kept it."""
    found = []
    for version in versions:
        for place in held:
            if place["dataset"] != version.dataset:
                continue
            recipe = version.recipe.get("name", "mixed")
            is_learnt = place["split"] in LEARNT_SPLITS and _keeps(recipe, place["event_time_us"])
            told = {"version": version.version, "recipe": recipe, "trainer": version.trainer, "learnt": is_learnt}
            found.append(told | {"gate": version.gate.get("verdict"), "approval": version.approval})
    return found


def _keeps(recipe: str, event_time_us: int) -> bool:
    table = pl.DataFrame({"event_time": [event_time_us]})
    return bool(table.select(kept_rows(parse_recipe(recipe)).alias("kept"))["kept"][0])


def asked_again(
    versions: Sequence[Version], paths: Paths, contract: Contract, row: Row, truth: Any
) -> list[dict[str, Any]]:
    """What each of the newest versions answers to the row now.

    Parameters
    ----------
    truth
        The label that came true (or was given), or a regression's value; None: not known, so no answer is right.
    """
    if not row.features:
        return []
    kinds = {"number": pl.Float64, "category": pl.String, "boolean": pl.Boolean}
    schema = {f.name: kinds[f.kind] for f in contract.fields} | {"event_time": pl.Int64}
    values = {f.name: row.features.get(f.name) for f in contract.fields} | {"event_time": row.event_time_us}
    table = pl.DataFrame([values], schema=schema)
    found: list[dict[str, Any]] = []
    for version in versions[-ASKED_MAX:]:
        try:
            predictor = load_artifact(paths.root / version.path, version.artifact_sha256, key=paths.key())
            answer = predictor.predict(with_columns(table, version.boundaries))
        except (FlywheelError, pl.exceptions.PolarsError) as error:
            found.append(
                {"version": version.version, "score": None, "label": None, "is_right": None, "note": str(error)}
            )
            continue
        label = answer.labels[0] if answer.labels else None
        right = None if truth is None or label is None else label == truth
        found.append({"version": version.version, "score": float(answer.scores[0]), "label": label, "is_right": right})
    return found


def regression_of(connection: sa.Connection, row: Row) -> dict[str, Any] | None:
    """The permanent case that the row became when a version fixed it."""
    query = sa.select(regression_case).where(
        regression_case.c.model == row.model, regression_case.c.prediction_id == row.prediction_id
    )
    case = connection.execute(query).first()
    if case is None:
        return None
    names = ("failed_version", "fixed_version", "verdict", "waived_by", "waived_reason")
    return {name: getattr(case, name) for name in names} | {"since": format_us(case.created_us)}


def champions(connection: sa.Connection, model: str) -> list[dict[str, Any]]:
    """The ledger of the champion, oldest first."""
    query = sa.select(alias_event).where(alias_event.c.model == model, alias_event.c.alias == CHAMPION)
    return [
        {"version": e.version, "since": format_us(e.time_us), "action": e.action, "time_us": e.time_us}
        for e in connection.execute(query.order_by(alias_event.c.id))
    ]


def fixed_by(
    case: Mapping[str, Any] | None, answers: Sequence[Mapping[str, Any]], served: str | None
) -> dict[str, Any] | None:
    """The version that put the row right: the regression case's, else the first after the served one that is right."""
    if case is not None:
        return {"version": case["fixed_version"], "why": "it made the row a regression case"}
    names = [answer["version"] for answer in answers]
    if served not in names or any(a["version"] == served and a["is_right"] is not False for a in answers):
        return None
    for answer in answers[names.index(served) + 1 :]:
        if answer["is_right"]:
            return {"version": answer["version"], "why": "the first version since that answers it right"}
    return None
