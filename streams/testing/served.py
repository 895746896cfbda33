"""An installation with a past for tests: rows written by the real merger, stores and registry; no server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa

from retrain.testing import CLUSTER, START_US, served_scores, small_contract, small_rows, write_log
from schemas.database import open_database
from schemas.events import SOURCES, envelope, subject, topic
from schemas.history import history_parts
from schemas.parts import N_CORRECT, Part
from schemas.profile import build_profile
from schemas.registry import Codec, FileRegistry
from schemas.times import HOUR_US
from streams.config import Config, load_config
from streams.merging import Merger

DAYS = 6
PER_DAY = 50
MODEL_TOML = """
[flywheel]
state_dir = "state"

[models.small]
contract = "small.avsc"
profile = "profile.json"
"""
TOML = f"""{MODEL_TOML}
[models.small.failures]
confident = "(score > 0.9 and truth = 'on_time') or (score < 0.1 and truth = 'late')"
"""


@dataclass
class World:
    """A state directory with six days of one model, its database, and what went in."""

    root: Path
    config: Config
    engine: sa.Engine
    codec: Codec
    merger: Merger
    rows: pl.DataFrame
    scores: np.ndarray[Any, Any]

    @property
    def argv(self) -> list[str]:
        """How the command line is pointed here."""
        return ["--config", str(self.root / "flywheel.toml")]

    def summary(
        self, noun: str, partition: int, start: int, end: int, parts: Sequence[Part] = (), **more: Any
    ) -> dict[str, Any]:
        """A message of the topic ``summaries`` with one segment."""
        is_complete, counters = more.get("is_complete", False), more.get("counters", {"records": end - start})
        cluster, watermark = more.get("cluster", CLUSTER), more.get("watermark", START_US)
        segment = {
            "topic": topic(noun), "start": start, "end": end, "is_complete": is_complete,
            "order_ts": 0, "watermark": watermark, "counters": counters,
            "parts": [
                {
                    "model": p.model, "version": p.version, "role": p.role, "slice": p.slice, "axis": p.axis,
                    "window": p.window_us, "profile": p.profile, "codes": p.codes.astype("<i4").tobytes(),
                    "counts": p.counts.astype("<i8").tobytes(),
                }
                for p in parts
            ],
        }  # fmt: skip
        return {
            "cluster": cluster, "partition": partition, "partitions": 2, "time": START_US, "watermark": watermark,
            "is_idle": False, "segments": [segment],
        }  # fmt: skip


def late(rows: pl.DataFrame) -> pl.Series:
    """1.0 where the truth is "late"."""
    return (rows["label"] == "late").cast(pl.Float64)


def parts_of_rows(world: World, rows: pl.DataFrame, scores: np.ndarray[Any, Any], version: str = "v1") -> list[Part]:
    """What the plane would have counted."""
    contract, profile = world.config.model("small").contract, world.config.model("small").profile
    table = rows.with_columns(
        score=pl.Series(scores), y=late(rows), due_time=pl.col("truth_due"),
        label=pl.when(pl.Series(scores) >= 0.5).then(pl.lit("late")).otherwise(pl.lit("on_time")),
    )  # fmt: skip
    slices = [(s.field, s.value) for s in contract.slices()]
    found = history_parts(table, profile, version=version, slices=slices)
    right = (scores >= 0.5) == (late(rows).to_numpy() == 1)
    hours = rows["event_time"].to_numpy() // HOUR_US
    for hour in np.unique(hours):
        count = np.array([int(right[hours == hour].sum())])
        found.append(
            Part(
                "small",
                version,
                "champion",
                "all",
                "event",
                int(hour) * HOUR_US,
                np.array([N_CORRECT], np.int32),
                count,
            )
        )
    return found


def bare_world(root: Path, *, days: int = DAYS, per_day: int = PER_DAY, database: str | None = None) -> World:
    """A configured model that has seen nothing yet; ``database`` is a URL, default SQLite in the state directory."""
    contract = small_contract()
    (root / "small.avsc").write_text(json.dumps(contract.document))
    past = small_rows(20, per_day, first_day=-20)
    profile = build_profile(past, contract.fields, model="small", labels=contract.target.labels)
    (root / "profile.json").write_text(profile.to_json())
    (root / "flywheel.toml").write_text(TOML)
    return open_world(root, days=days, per_day=per_day, database=database)


def open_world(root: Path, *, days: int = DAYS, per_day: int = PER_DAY, database: str | None = None) -> World:
    """A world whose files are there: of :func:`bare_world`, or a copy of one."""
    config = load_config(root / "flywheel.toml", database=database)
    engine = open_database(config.database_url)
    registry = FileRegistry(config.registry_path)
    schema_id = registry.register(subject("summaries"), envelope("summaries"))
    codec, rows = Codec(registry), small_rows(days, per_day)
    return World(root, config, engine, codec, Merger(engine, codec, schema_id), rows, served_scores(rows))


def serve(world: World) -> World:
    """Let v1 serve the world's rows in two partitions: the first half is folded, the second still open."""
    half = world.rows.height // 2
    halves = [(world.rows[:half], world.scores[:half]), (world.rows[half:], world.scores[half:])]
    for partition, (rows, scores) in enumerate(halves):
        parts = parts_of_rows(world, rows, scores)
        watermark = int(rows["event_time"].max())  # type: ignore[arg-type]
        for noun in SOURCES:
            own = parts if noun == "predictions" else []
            message = world.summary(
                noun, partition, 0, rows.height, own, is_complete=partition == 0, watermark=watermark
            )
            world.merger.merge(message, START_US + partition)
    write_log(world.config.archive_dir, world.rows, world.config.model("small").contract, world.scores)
    return world
