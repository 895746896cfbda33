"""A new reference profile from what was served.

The archive holds every row, so a profile cut from it is the one that training would have made of the same rows: exact
order statistics, exact names, and the model's own answers beside. A histogram kept beside the cells could say no more,
and would cost the data plane something at every row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from retrain.joined import archive_ends, read_archive
from schemas.contract import Contract
from schemas.errors import UsageError
from schemas.profile import LABEL_FEATURE, SCORE_FEATURE, Profile, build_profile
from streams.logic.scores import compare

SEED = 0x0F11E
ROWS_MIN = 50
"""With fewer, most order statistics that serve as edges would be one and the same row."""
ANSWERS = {SCORE_FEATURE: "served_score", LABEL_FEATURE: "served_label"}


class TooFewRowsError(UsageError):
    """There are too few rows to cut a reference from."""

    action = "Take a longer time, with --since and --until."


def served_rows(
    archive_dir: Path, contract: Contract, since_us: int, until_us: int, *, version: str | None, rows_max: int
) -> pl.DataFrame:
    """First inputs of the archive asked in ``[since, until)``, in the order of event time, and what was answered.

    Parameters
    ----------
    version
        Only rows that this version answered as the champion.
    rows_max
        Of more rows, those with the smallest hashes of their ids: the same ones each time.

    Raises
    ------
    TooFewRowsError
    """
    rows, _ = read_archive(archive_dir, contract, archive_ends(archive_dir), until_us - 1)
    rows = rows.filter(pl.col("event_time") >= since_us)
    if version is not None:
        rows = rows.filter(pl.col("served_version") == version)
    if rows.height > rows_max:
        chosen = rows["prediction_id"].hash(SEED).arg_sort()[:rows_max].sort()
        rows = rows[chosen]
    if rows.height < ROWS_MIN:
        raise TooFewRowsError(f"The archive has {rows.height} such rows of '{contract.model}'; {ROWS_MIN} are needed.")
    return rows


def cut(rows: pl.DataFrame, contract: Contract) -> Profile:
    """The reference profile of served rows; the model's answers are features of it where all rows have one."""
    score, label = (rows[name] if not rows[name].null_count() else None for name in ANSWERS.values())
    return build_profile(
        rows, contract.fields, model=contract.model, fingerprint=contract.fingerprint, score=score, label=label,
        labels=contract.target.labels,
    )  # fmt: skip


def distances(rows: pl.DataFrame, reference: Profile) -> dict[str, float]:
    """The population stability index of every feature of the rows against a reference; an answer that is not there
    counts as null."""
    found = {}
    for feature in reference.features:
        codes = feature.codes(rows[ANSWERS.get(feature.name, feature.name)])
        found[feature.name] = compare(feature, np.bincount(codes, minlength=feature.cell_count)).psi
    return found
