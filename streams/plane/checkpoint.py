"""The join store on disk: a cache that the logs can rebuild.

One folder a partition number: immutable run files, and one ``checkpoint.json`` that names them and the offsets that
they hold, replaced atomically. A folder that is damaged, foreign or of another version is set aside, never trusted.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import structlog

from streams.crash import crash_point
from streams.plane.horizon import Horizon
from streams.plane.join import ModelStore
from streams.plane.numbered import TIMER_SCHEMA, Timers
from streams.plane.plan import HASH_SEEDS, ModelPlan, Versions
from streams.plane.reached import Mark

FORMAT = 5
NAME = "checkpoint.json"
CANNOT_WRITE = (OSError, pl.exceptions.PolarsError)
"""What a full disk raises, and one that is gone or read-only: numpy and the file system the first, polars either."""

log = structlog.get_logger("flywheel.plane")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of the logs: for each topic, the position, and the running maxima before it; the hours."""

    positions: tuple[int, ...]
    orders_ts: tuple[int, ...]
    newest_us: tuple[int, ...]
    reached: tuple[Mark, ...]


def stamp(cluster: str, plans: Mapping[str, ModelPlan], segment_records: int, horizon: Horizon) -> dict[str, Any]:
    """What must be equal for a store to be of use: hashes are stable within one version of polars only."""
    return {
        "format": FORMAT,
        "polars": pl.__version__,
        "seeds": list(HASH_SEEDS),
        "cluster": cluster,
        "segment_records": segment_records,
        "epoch_ms": horizon.epoch_ms,
        "models": {model: [plan.profile.profile_id, plan.contract.fingerprint] for model, plan in plans.items()},
    }


def save(
    folder: Path,
    stamped: dict[str, Any],
    place: Checkpoint,
    stores: Mapping[str, ModelStore],
    timers: Mapping[str, Mapping[str, Timers]],
    versions: Versions,
) -> None:
    """Write new runs, then replace the checkpoint, then drop the files that it no longer names.

    Raises
    ------
    OSError, PolarsError
        If it cannot be written (``CANNOT_WRITE``): the last checkpoint stays, and the runs stay in memory.
    """
    crash_point("checkpoint:before")
    runs_folder = folder / "runs"
    tables = {
        kind: {m: f"{kind}-{uuid.uuid4().hex}.parquet" for m, timer in of_kind.items() if timer.table().height}
        for kind, of_kind in timers.items()
    }
    try:
        runs_folder.mkdir(parents=True, exist_ok=True)
        runs = {m: {name: runs.save(runs_folder) for name, runs in store.sets().items()} for m, store in stores.items()}
        for kind, names in tables.items():
            for model, name in names.items():
                timers[kind][model].table().write_parquet(runs_folder / name)
        state = {
            "stamp": stamped,
            "positions": place.positions,
            "orders_ts": place.orders_ts,
            "newest_us": place.newest_us,
            "reached": place.reached,
            "versions": versions.names,
            "runs": runs,
            "timers": tables,
        }
        temporary = folder / f"{NAME}.tmp"
        with temporary.open("w", encoding="utf-8") as out:
            json.dump(state, out)
            out.flush()
            os.fsync(out.fileno())
    except CANNOT_WRITE:
        saved = {run.name for store in stores.values() for set_ in store.sets().values() for run in set_.runs}
        _sweep(runs_folder, saved | _named(folder))
        raise
    crash_point("checkpoint:written")
    temporary.replace(folder / NAME)
    crash_point("checkpoint:replaced")
    _sweep(runs_folder, _named(folder))
    crash_point("checkpoint:after")


def _named(folder: Path) -> set[str]:
    """Runs and tables that the checkpoint on disk names."""
    try:
        state = json.loads((folder / NAME).read_text(encoding="utf-8"))
        runs = {item["name"] for sets in state["runs"].values() for items in sets.values() for item in items}
        return runs | {name for names in state["timers"].values() for name in names.values()}
    except (OSError, ValueError, AttributeError):  # none, damaged, or of another format: it names nothing of use
        return set()


def _sweep(runs_folder: Path, kept: Collection[str]) -> None:
    """Remove files of runs and tables that nothing names any more."""
    for path in runs_folder.iterdir() if runs_folder.exists() else ():
        if path.name.split(".")[0] not in kept and path.name not in kept:
            path.unlink(missing_ok=True)


def load(
    folder: Path, stamped: dict[str, Any], plans: Mapping[str, ModelPlan]
) -> tuple[Checkpoint, dict[str, ModelStore], dict[str, dict[str, pl.DataFrame]], Versions] | None:
    """The store of a folder, its timers by kind (still to be resumed), its versions; None if there is none of use."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["stamp"] != json.loads(json.dumps(stamped)):
            raise ValueError("it belongs to another log, contract, profile or version")
        stores = {model: ModelStore(plan) for model, plan in plans.items()}
        for model, store in stores.items():
            for name, runs in store.sets().items():
                runs.load(folder / "runs", state["runs"][model][name])
        timers = {kind: {m: pl.DataFrame(schema=TIMER_SCHEMA) for m in plans} for kind in ("timers", "early")}
        for kind, names in state["timers"].items():
            timers[kind] |= {model: pl.read_parquet(folder / "runs" / name) for model, name in names.items()}
        versions = Versions([(str(v), str(r)) for v, r in state["versions"]])
        marks = tuple((int(stamp_), int(hour)) for stamp_, hour in state["reached"])
        place = Checkpoint(tuple(state["positions"]), tuple(state["orders_ts"]), tuple(state["newest_us"]), marks)
    except Exception as error:  # any damage at all: the store is a cache, and what is wrong with it is logged
        aside = folder.with_name(f"{folder.name}.aside-{os.getpid()}-{path.stat().st_mtime_ns}")
        folder.rename(aside)
        log.warning("join_store_set_aside", folder=str(folder), moved_to=aside.name, reason=str(error))
        return None
    return place, stores, timers, versions
