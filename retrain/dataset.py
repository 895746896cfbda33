"""Build a dataset: the rows to learn from and the rows to be judged by, as one Parquet file and its manifest.

One row has one place: ``train`` (before the held-out block), ``gate`` (the newest whole days, or a table given for
it), ``tail`` (the day that has just begun), ``out`` (a reviewer's verdict says that it counts for neither) or none (not
mature, or without a label). No id is on two sides. All recipes of a run work on the same file. The names of its own
columns begin with @, which no feature's name can.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from retrain.checks import dataset_checks
from retrain.errors import DatasetIncompleteError, NotEnoughRowsError
from retrain.joined import BASE, Ends, feature_columns, label_value, read_archive, with_answers
from retrain.labels import LabelFacts, fold
from retrain.manifest import FORMAT, MANIFEST, ROWS, Manifest, canonical
from retrain.paths import Paths, file_sha256
from retrain.recipes import Recipe, change_us
from schemas.contract import Contract
from schemas.errors import UsageError
from schemas.times import DAY_US, from_us, to_us

LABEL, TIME, ID = "label", "event_time", "prediction_id"
HOLDOUT_EVERY = 5
WEIGHT_MAX = 1000.0
"""1 over the smallest share of a random audit that is of any use; a smaller probability is capped, and counted."""


@dataclass(frozen=True)
class DatasetRequest:
    """Everything that a dataset depends on.

    Parameters
    ----------
    ends
        How far each topic is read.
    as_of_us
        Event time: what came later does not exist yet.
    base, gate_table
        Parquet files in the form of :func:`standard_rows`: the champion's first training rows, and rows held out by
        whoever gives them (instead of the newest days).
    boundaries
        Changes of meaning that the champion knows of.
    base_holdout
        Hold out rows of ``base`` itself: its newest ``days``, or every fifth of its ``rows`` where time has no part.
    """

    contract: Contract
    ends: Ends
    as_of_us: int
    recipes: tuple[Recipe, ...]
    facts: LabelFacts = field(default_factory=LabelFacts)
    base: Path | None = None
    gate_table: Path | None = None
    boundaries: tuple[int, ...] = ()
    base_holdout: str | None = None
    holdout_days: int = 7
    seed: int = 0
    actor_share_max: float = 0.5
    leak_auc_max: float = 0.9999


def standard_rows(
    table: pl.DataFrame, contract: Contract, *, label: str = LABEL, time_column: str = TIME, source: str = BASE
) -> pl.DataFrame:
    """A table of past rows in the form of a dataset: ids, event times in microseconds, features, ``@y``.

    Raises
    ------
    UsageError
        If a column is missing, a time is not readable or a label is unknown.
    """
    missing = [name for name in (*contract.feature_names, label, time_column) if name not in table.columns]
    if missing:
        raise UsageError(f"The table has no column '{missing[0]}'.", action="Name its columns, or correct the table.")
    times = table[time_column]
    if times.dtype == pl.String:
        times = times.str.to_datetime(time_unit="us", time_zone="UTC")
    if times.dtype == pl.Date or isinstance(times.dtype, pl.Datetime):
        times = times.cast(pl.Datetime("us")).cast(pl.Int64)
    y = pl.col(label).cast(pl.Float64)
    if contract.target.kind != "regression" and table[label].dtype == pl.String:
        y = label_value(pl.col(label), contract.target)
    elif contract.target.kind == "multiclass":
        y = label_value(pl.col(label).cast(pl.String), contract.target)
    has_ids = ID in table.columns
    ids = pl.col(ID).cast(pl.String) if has_ids else pl.format(f"{source}-{{}}", pl.int_range(pl.len()))
    rows = table.select(ids.alias(ID), times.cast(pl.Int64).alias(TIME), *feature_columns(contract), y.alias("@y"))
    if rows[TIME].null_count() or rows["@y"].null_count():
        raise UsageError(f"The table has rows without '{time_column}' or with an unknown '{label}'.")
    if rows[ID].n_unique() != rows.height:
        raise UsageError("The table has a prediction id twice.")
    return rows.sort(TIME, ID)


def keep_table(rows: pl.DataFrame, paths: Paths) -> tuple[Path, str]:
    """Store a table of :func:`standard_rows` under the hash of its file."""
    folder = paths.root / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{os.getpid()}.unfinished"
    rows.write_parquet(draft, compression="zstd")
    sha256 = file_sha256(draft)
    place = folder / f"{sha256}.parquet"
    draft.replace(place)
    return place, sha256


def held_out_from(as_of_us: int, timezone: str, days: int, change: int | None) -> int:
    """Where the held-out block begins: at a local midnight, so that its blocks are whole days.

    After a change of meaning at most half of the days since are held out: the rest must be learnt from.
    """
    if change is not None and change < as_of_us:
        days = max(min(days, (as_of_us - change) // DAY_US // 2), 1)
    zone = ZoneInfo(timezone)
    today = from_us(as_of_us).astimezone(zone).date()
    start = datetime.combine(today - timedelta(days=days), time(), zone)
    return to_us(start.astimezone(UTC))


def build_dataset(paths: Paths, request: DatasetRequest) -> Manifest:
    """Build the dataset, or find that it is there already; returns its manifest.

    Raises
    ------
    NotEnoughRowsError
        If there is no mature row at all.
    """
    rows, manifest = _assemble(paths, request)
    place = paths.dataset(manifest.hash)
    if not (place / MANIFEST).exists():
        draft = place.with_name(f"{place.name}.{os.getpid()}.unfinished")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        rows.replace(draft / ROWS)
        (draft / MANIFEST).write_text(canonical(manifest.document))
        try:
            draft.rename(place)
        except OSError:  # another process built the same one first
            shutil.rmtree(draft, ignore_errors=True)
    rows.unlink(missing_ok=True)
    return manifest


def _assemble(paths: Paths, request: DatasetRequest) -> tuple[Path, Manifest]:
    """Write the rows to a file of this process and describe them."""
    contract = request.contract
    joined, spans = read_archive(paths.archive, contract, request.ends, request.as_of_us)
    live = with_answers(joined, contract, request.facts, request.as_of_us)
    change = change_us(request.recipes)
    gate_from = held_out_from(request.as_of_us, contract.timezone, request.holdout_days, change)
    today = held_out_from(request.as_of_us, contract.timezone, 0, None)
    live = live.with_columns(_split(gate_from, today, has_table=request.gate_table is not None).alias("@split"))
    tables = []
    if request.base is not None:
        tables.append(_as_rows(pl.read_parquet(request.base), _base_split(request.base_holdout, gate_from)))
    if request.gate_table is not None:
        tables.append(_as_rows(pl.read_parquet(request.gate_table), pl.lit("gate")))
    live = _without(live, tables)
    rows = pl.concat([*tables, live], how="diagonal_relaxed").filter(pl.col("@split").is_not_null())
    if rows.filter(pl.col("@split") == "train").is_empty():
        raise NotEnoughRowsError
    rows = _finished(rows, contract).sort(TIME, ID)
    checks = dataset_checks(rows, contract, request.actor_share_max, request.leak_auc_max)
    folder = paths.root / "datasets"
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"rows.{os.getpid()}.unfinished"
    rows.write_parquet(draft, compression="zstd")
    parquet = {ROWS: {"sha256": file_sha256(draft), "rows": rows.height, "bytes": draft.stat().st_size}}
    document = _document(paths, request, rows, live.height, spans, checks, parquet, gate_from)
    return draft, Manifest(document)


def _split(gate_from: int, today: int, *, has_table: bool) -> pl.Expr:
    """The gate judges by whole days; the rows of the day that has just begun only help the winner's second fit."""
    is_late = pl.lit(value=False) if has_table else pl.col(TIME) >= gate_from
    return (
        pl.when(pl.col("@is_out"))
        .then(pl.lit("out"))
        .when(pl.col("@y").is_null())
        .then(None)
        .when(is_late & (pl.col(TIME) >= today))
        .then(pl.lit("tail"))
        .when(is_late)
        .then(pl.lit("gate"))
        .otherwise(pl.lit("train"))
    )


def _base_split(holdout: str | None, gate_from: int) -> pl.Expr:
    if holdout is None:
        return pl.lit("train")
    every_fifth = pl.int_range(pl.len()) % HOLDOUT_EVERY == HOLDOUT_EVERY - 1
    is_held_out = pl.col(TIME) >= gate_from if holdout == "days" else every_fifth
    return pl.when(is_held_out).then(pl.lit("gate")).otherwise(pl.lit("train"))


def _as_rows(table: pl.DataFrame, split: pl.Expr) -> pl.DataFrame:
    return table.with_columns(split.alias("@split"), pl.lit(BASE).alias("@source"), pl.lit(1.0).alias("@probability"))


def _without(live: pl.DataFrame, tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Live rows whose id is in no given table: an id has one place."""
    for table in tables:
        live = live.join(table.select(ID), on=ID, how="anti", maintain_order="left")
    return live


def _finished(rows: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Fixed columns in a fixed order, with the local day and the weight of every row."""
    local = pl.col(TIME).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(contract.timezone)
    texts = ("@source", "@tag", "@actor", "served_version", "served_label")
    numbers = {"due_us": pl.Int64, "truth_time": pl.Int64, "served_score": pl.Float64}
    absent = [pl.lit(None, pl.String).alias(name) for name in texts if name not in rows.columns]
    absent += [pl.lit(None, kind).alias(name) for name, kind in numbers.items() if name not in rows.columns]
    rows = rows.with_columns(
        *absent,
        local.dt.date().cast(pl.Int32).alias("@day"),
        (1 / pl.col("@probability")).clip(1.0, WEIGHT_MAX).alias("@weight"),
    )
    fixed = ("@split", "@day", "@y", "@weight", "@probability", *texts, *numbers)
    return rows.select(ID, TIME, *contract.feature_names, *fixed)


def _document(
    paths: Paths,
    request: DatasetRequest,
    rows: pl.DataFrame,
    live: int,
    spans: dict[str, Any],
    checks: list[dict[str, Any]],
    parquet: dict[str, Any],
    gate_from: int,
) -> dict[str, Any]:
    contract = request.contract
    counts = dict(rows["@split"].value_counts().sort("@split").iter_rows())
    kept_live = rows.filter(pl.col("@source") != BASE).height
    sources = rows.filter(pl.col("@split") != "out")["@source"].value_counts().sort("@source")
    tables = {"base": request.base, "gate_table": request.gate_table}
    return {
        "format": FORMAT,
        "model": contract.model,
        "contract": {"version": contract.version, "fingerprint": contract.fingerprint},
        "as_of_us": request.as_of_us,
        "ranges": {noun: {place: asdict(span) for place, span in found.items()} for noun, found in spans.items()},
        "tables": {name: paths.relative(path) if path else None for name, path in tables.items()},
        "labels": {"events": len(request.facts.event_ids), "digest": request.facts.digest},
        "label_events": list(request.facts.event_ids),
        "proposals": [asdict(proposal) for proposal in request.facts.proposals],
        "boundaries": list(request.boundaries),
        "recipes": [recipe.name for recipe in request.recipes],
        "split": {
            "by": request.base_holdout or "time",
            "held_out_from_us": gate_from,
            "holdout_days": request.holdout_days,
        },
        "seed": request.seed,
        "limits": {"actor_share_max": request.actor_share_max, "leak_auc_max": request.leak_auc_max},
        "counts": counts | {"immature": live - kept_live},
        "sources": dict(sources.iter_rows()),
        "checks": checks,
        "parquet": parquet,
        "writer": f"polars {pl.__version__}",
    }


def load_manifest(paths: Paths, digest: str) -> Manifest:
    """A dataset's manifest.

    Raises
    ------
    UsageError
        If there is no such dataset, or its file was changed.
    """
    path = paths.dataset(digest) / MANIFEST
    if not path.exists():
        raise UsageError(f"There is no dataset '{digest}'.", action="'flywheel retrain history' names the datasets.")
    manifest = Manifest(json.loads(path.read_text()))
    if manifest.hash != digest:
        raise UsageError(f"The manifest of dataset '{digest[:12]}' was changed.")
    return manifest


def rebuild_dataset(paths: Paths, digest: str, contract: Contract, records: Sequence[dict[str, Any]] = ()) -> Manifest:
    """Build a dataset again from the archive, and prove that it is the same.

    Parameters
    ----------
    records
        The model's label events, in order; those that the dataset did not use are left out.

    Raises
    ------
    DatasetIncompleteError
        If offsets are gone from the archive, naming them, or if what comes out differs.
    """
    told = load_manifest(paths, digest).document
    used = set(told["label_events"])
    facts = fold(record for record in records if record["event_id"] in used)
    ends = {noun: {_place(name): span["end"] for name, span in found.items()} for noun, found in told["ranges"].items()}
    tables = {name: paths.root / path if path else None for name, path in told["tables"].items()}
    from retrain.recipes import parse_recipe

    request = DatasetRequest(
        contract=contract,
        ends=ends,
        as_of_us=told["as_of_us"],
        recipes=tuple(parse_recipe(name) for name in told["recipes"]),
        facts=replace(facts, event_ids=tuple(told["label_events"]) if len(facts.event_ids) == len(used) else ()),
        base=tables["base"],
        gate_table=tables["gate_table"],
        boundaries=tuple(told["boundaries"]),
        base_holdout=None if told["split"]["by"] == "time" else told["split"]["by"],
        holdout_days=told["split"]["holdout_days"],
        seed=told["seed"],
        actor_share_max=told["limits"]["actor_share_max"],
        leak_auc_max=told["limits"]["leak_auc_max"],
    )
    draft, again = _assemble(paths, request)
    draft.unlink()
    if again.hash != digest:
        raise DatasetIncompleteError(_difference(told, again.document))
    return again


def _place(name: str) -> tuple[str, int]:
    cluster, _, partition = name.rpartition("/")
    return cluster, int(partition)


def _difference(told: dict[str, Any], got: dict[str, Any]) -> str:
    for noun, places in told["ranges"].items():
        for place, span in places.items():
            now = got["ranges"][noun].get(place, {"start": span["end"], "records": 0})
            if now["records"] != span["records"]:
                gone = span["records"] - now["records"]
                return (
                    f"{gone} {noun} of partition {place} are gone from the archive: "
                    f"offsets {span['start']} to {span['end'] - 1} held {span['records']}, now {now['records']}."
                )
    parts = sorted(name for name in told if told[name] != got.get(name))
    return f"The dataset built again differs in: {', '.join(parts)}."
