"""What runs and decisions there were, as plain documents for the command line and pages."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from retrain.tables import dataset, retrain_decision, retrain_run, run_candidate
from schemas.database import read
from schemas.errors import UsageError


def _run(row: sa.Row[Any]) -> dict[str, Any]:
    told = row._asdict()
    detail = told.pop("detail")
    return told | {
        "outcome": detail.get("outcome", ""),
        "actor": detail.get("actor"),
        "warnings": detail.get("warnings", []),
    }


def list_runs(engine: sa.Engine, model: str, limit: int = 20) -> list[dict[str, Any]]:
    """The newest runs of a model, newest first."""
    query = sa.select(retrain_run).where(retrain_run.c.model == model)
    query = query.order_by(retrain_run.c.started_us.desc(), retrain_run.c.run_id.desc()).limit(limit)
    with read(engine) as connection:
        return [_run(row) for row in connection.execute(query)]


def find_run(engine: sa.Engine, run_id: str) -> dict[str, Any]:
    """A run with its candidates.

    Raises
    ------
    UsageError
        If there is none.
    """
    with read(engine) as connection:
        row = connection.execute(sa.select(retrain_run).where(retrain_run.c.run_id == run_id)).first()
        if row is None:
            raise UsageError(f"There is no run '{run_id}'.", action="'flywheel retrain history' lists them.")
        query = sa.select(run_candidate).where(run_candidate.c.run_id == run_id).order_by(run_candidate.c.recipe)
        return _run(row) | {"candidates": [candidate._asdict() for candidate in connection.execute(query)]}


def list_decisions(engine: sa.Engine, model: str, limit: int = 20) -> list[dict[str, Any]]:
    """The newest decisions, yes and no, newest first."""
    query = sa.select(retrain_decision).where(retrain_decision.c.model == model)
    with read(engine) as connection:
        rows = connection.execute(query.order_by(retrain_decision.c.id.desc()).limit(limit))
        return [row._asdict() for row in rows]


def find_dataset(engine: sa.Engine, name: str) -> str:
    """The hash of the dataset whose hash begins with ``name``.

    Raises
    ------
    UsageError
        If there is none, or more than one.
    """
    with read(engine) as connection:
        query = sa.select(dataset.c.hash).where(dataset.c.hash.startswith(name, autoescape=True)).limit(2)
        found = list(connection.execute(query).scalars())
    if len(found) != 1:
        told = "There is no dataset" if not found else "There is more than one dataset"
        raise UsageError(f"{told} '{name}'.", action="'flywheel retrain show RUN' names a run's dataset.")
    return str(found[0])
