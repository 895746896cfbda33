"""Out-of-fold scores of a first version's own training rows.

What a model says of rows that it has learnt from is too good: it says nothing about the bias that is usual in service.
So every third week is scored by a fit that did not see it, three times over.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from retrain.artifacts import load_artifact
from retrain.errors import TrainerFailedError
from retrain.paths import Paths
from retrain.recipes import exclude
from retrain.tournament import Tournament
from schemas.times import DAY_US

FOLDS = 3
WEEK_US = 7 * DAY_US
WEEKS_MIN = 2 * FOLDS
"""With fewer weeks a fold is one week or none, and the fits differ more than the weeks do."""


def scores_path(paths: Paths, artifact_sha256: str) -> Path:
    """Where the out-of-fold scores of a version are: ``prediction_id``, ``score``."""
    return paths.root / "folds" / f"{artifact_sha256}.parquet"


def write_scores(tournament: Tournament, rows: pl.DataFrame, paths: Paths, artifact_sha256: str) -> bool:
    """Score all rows out of fold and keep the scores; False if the table is too short for it."""
    place = scores_path(paths, artifact_sha256)
    if place.exists():
        return True
    first = int(rows["event_time"].min())  # type: ignore[arg-type]
    weeks = (rows["event_time"] - first) // WEEK_US
    if int(weeks.max()) + 1 < WEEKS_MIN:  # type: ignore[arg-type]
        return False
    starts = [first + week * WEEK_US for week in range(int(weeks.max()) + 1)]  # type: ignore[arg-type]
    specs = [
        tournament.spec(exclude([(at, at + WEEK_US) for at in starts[fold::FOLDS]]), ("train", "gate"))
        for fold in range(FOLDS)
    ]
    found = tournament.launcher.run_all(specs, tournament.setting.manifest.rows_sha256)
    frames: list[pl.DataFrame] = []
    for fold, fit in enumerate(found):
        if isinstance(fit, TrainerFailedError):
            return False
        predictor = load_artifact(fit.folder / "artifact", fit.told["artifact_sha256"], key=paths.key())
        unseen = rows.filter(weeks % FOLDS == fold)
        scores = pl.Series("score", predictor.predict(unseen).scores, dtype=pl.Float64)
        frames.append(unseen.select("prediction_id").with_columns(scores))
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_suffix(".unfinished")
    pl.concat(frames).write_parquet(draft, compression="zstd")
    draft.replace(place)
    return True
