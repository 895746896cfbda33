"""Looks for slices that nobody declared and that are answered worse, over the joined rows of the archive.

The last result of a model is a JSON file in the state directory. A worker looks once a local day, in a thread, and
takes no more than a tenth of the time: of days that go by faster only the newest is looked at. What is found is told as
an incident of the version, which wakes nobody: ``warn`` from a tenth of a standard deviation, else ``info``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import structlog

from retrain.joined import Ends, archive_ends, label_value, read_archive
from retrain.paths import Paths
from schemas import archive
from schemas.contract import Target
from schemas.database import read
from schemas.events import topic
from schemas.parts import SCORE_BINS, score_bin
from schemas.times import format_us
from streams.config import Config
from streams.daily import Daily, keep, kept
from streams.evidence import segments_of
from streams.findings import Finding, Finds, bounded, tell
from streams.history import decided
from streams.ledger import Look, read_delays
from streams.logic.counts import LocalHours
from streams.logic.incident import INFO, WARN
from streams.logic.outcomes import Labelled, calibrated
from streams.logic.staleness import EPS_WARN
from streams.logic.weak import Grid, find_weak
from streams.runtime import Runtime
from streams.windows import WindowReader

CHANNEL = "weak"
FORMAT = 2
"""Of the file; another one's is not read, the next look writes it anew."""
SHARE_MAX = 0.1
RECORDS_MAX = 400_000
"""Of each topic, the newest: some 200 MB of rows with 20 features, in a worker whose memory is bounded."""

log = structlog.get_logger("flywheel.weak")


def weak_slices(
    config: Config, model: str, *, until_us: int, horizon_us: int, version: str | None = None
) -> dict[str, Any]:
    """What a version answers worse than the rest, of all it answered and whose truth is mature at an event time.

    Parameters
    ----------
    horizon_us
        The age of maturity: of younger rows those whose truth is in are not like the others.
    version
        Default: the one that answered last.

    Returns
    -------
    ``until``, ``version``, ``rows``, ``scanned`` (how many slices share the budget), ``left_out`` (fields),
    ``is_newest_only`` (the archive holds more than is looked at), ``since_us`` (its first row), ``slices``: each with
    ``effect``, by how many standard deviations of a row's error it is surely worse, and where its wrong rows are.
    """
    configured = config.model(model)
    contract, policy = configured.contract, configured.monitor
    ends = archive_ends(config.archive_dir)
    starts, is_cut = _newest(config.archive_dir, ends)
    rows, _ = read_archive(config.archive_dir, contract, ends, until_us, starts)
    grid = Grid.of(configured.profile, contract.feature_names)
    rows = rows.filter(pl.col("served_score").is_not_null())
    found: dict[str, Any] = {
        "format": FORMAT,
        "model": model,
        "until": format_us(until_us),
        "until_us": until_us,
        "version": version,
    }
    found |= {"rows": 0, "scanned": grid.slices, "left_out": list(grid.left_out), "is_newest_only": is_cut}
    if not rows.height:
        return found | {"slices": []}
    found["version"] = version or rows["served_version"][-1]
    rows = rows.filter(
        pl.col("served_version") == found["version"], pl.col("event_time") + horizon_us <= until_us
    ).with_columns(decided(contract.target, until_us).alias("@y"))
    local = (
        pl.from_epoch("event_time", time_unit="us").dt.replace_time_zone("UTC").dt.convert_time_zone(contract.timezone)
    )
    rows = rows.filter(pl.col("@y").is_not_null()).with_columns(local.dt.date().alias("@day"))
    rows = _with_errors(rows, contract.target)
    weak = find_weak(
        rows, grid, is_share=contract.target.kind != "regression", alpha=policy.quality_alpha,
        rows_a_day=policy.quality_rows_a_day,
    )  # fmt: skip
    spread = float(rows["@error"].std() or 0.0) if weak else 0.0  # type: ignore[arg-type]
    place = Places(config.archive_dir, model, ends, starts)
    slices = [
        asdict(each)
        | {"effect": each.low / spread if spread else 0.0}
        | place.path(grid.rows_of(rows, each.values).filter(pl.col("@error") > each.rest))
        for each in weak
    ]
    since_us = rows["event_time"].min() if rows.height else until_us
    return found | {"since_us": since_us, "rows": rows.height, "slices": slices}


@dataclass(frozen=True)
class Places:
    """Where inputs are in the log."""

    root: Path
    model: str
    ends: Ends
    starts: Ends

    def path(self, shown: pl.DataFrame) -> dict[str, Any]:
        """``since``, ``rows_shown``, ``segments`` and ``place`` (of the first) of some joined rows; one or more."""
        logged = archive.retried(
            lambda: archive.scan(
                self.root, "inputs", self.model, columns=["prediction_id"], ends=self.ends["inputs"],
                starts=self.starts.get("inputs"),
            )
            .filter(pl.col("prediction_id").is_in(shown["prediction_id"].implode()))
            .collect()
        )  # fmt: skip
        files = [(f.cluster, f.partition, f.start, f.start) for f in archive.files(self.root, "inputs")]
        kinds = {"cluster": pl.String, "partition": pl.Int32, "offset": pl.Int64, "segment": pl.Int64}
        segments = pl.DataFrame(files, schema=kinds, orient="row").sort("offset")
        places = logged.sort("offset").join_asof(
            segments, on="offset", by=["cluster", "partition"], check_sortedness=False
        )
        rows = shown.select("prediction_id", "event_time").join(
            places.unique("prediction_id", keep="first", maintain_order=True), on="prediction_id"
        )
        first = rows.sort("event_time", "partition", "offset").row(0, named=True)
        return {
            "since": format_us(first["event_time"]),
            "rows_shown": rows.height,
            "segments": segments_of(rows),
            "place": {"topic": topic("inputs"), "partition": first["partition"], "offset": first["offset"]},
        }


def _newest(root: Path, ends: Ends) -> tuple[dict[str, dict[tuple[str, int], int]], bool]:
    """Where to begin, so that no more than ``RECORDS_MAX`` of a topic are read, and whether that leaves anything out.

    All partitions are cut in proportion: which one a prediction is in has nothing to do with how good it is.
    """
    starts: dict[str, dict[tuple[str, int], int]] = {}
    for noun, reached in ends.items():
        first: dict[tuple[str, int], int] = {}
        for file in archive.files(root, noun):
            place = (file.cluster, file.partition)
            first[place] = min(first.get(place, file.start), file.start)
        sizes = {place: end - first[place] for place, end in reached.items()}
        total = sum(sizes.values())
        if total > RECORDS_MAX:
            starts[noun] = {place: reached[place] - sizes[place] * RECORDS_MAX // total for place in reached}
    return starts, bool(starts)


def _with_errors(rows: pl.DataFrame, target: Target) -> pl.DataFrame:
    """``@error`` of every row, and ``@expected``: the mean error of rows with scores like its."""
    if target.kind == "regression":
        error = (pl.col("served_score") - pl.col("@y")).abs()
        return rows.with_columns(error.alias("@error"), pl.lit(None, pl.Float64).alias("@expected"))
    is_right = label_value(pl.col("served_label"), target) == pl.col("@y")
    rows = rows.with_columns((~is_right.fill_null(value=False)).cast(pl.Float64).alias("@error"))
    bins, error_of = score_bin(rows["served_score"].to_numpy()), rows["@error"].to_numpy()
    n, errors = (np.bincount(bins, weights, SCORE_BINS).astype(np.float64) for weights in (None, error_of))
    by_bin = calibrated(Labelled(n, errors, errors))
    expected = pl.lit(None, pl.Float64) if by_bin is None else pl.Series(by_bin[bins])
    return rows.with_columns(expected.alias("@expected"))


def last(state_dir: Path, model: str) -> dict[str, Any] | None:
    """The last result of a model; None if there is none that this version can read."""
    told = kept(Paths(state_dir).weak(model))
    return told if told is not None and told.get("format") == FORMAT else None


def finds(told: Mapping[str, Any], metric: str) -> Finds:
    """The alerts of a look; a slice that was told is not told again of its version, whose rows only grow."""
    found = []
    for each in told["slices"]:
        what = "mean error" if metric == "mae" else "share of wrong answers"
        knows = "" if each["expected"] is None else f"; its scores let expect {each['expected']:.3g}"
        message = (
            f"{each['name']}: {what} {each['error']:.3g} over {each['rows']:,} rows, {each['rest']:.3g} elsewhere "
            f"(more by {each['low']:.3g} to {each['high']:.3g}, one of {told['scanned']:,} slices looked at){knows}."
        )
        names = ("error", "rest", "low", "high", "expected", "effect", "rows", "since", "rows_shown", "segments")
        detail = {name: each[name] for name in names} | {"samples": list(each["ids"])}
        severity = WARN if each["effect"] >= EPS_WARN else INFO
        found.append(Finding(metric, message, detail, bounded(each["name"]), severity, each["place"]))
    well = f"No slice of {told['version']} is surely answered worse than the others any more."
    return Finds(
        CHANNEL, told["model"], found, told["since_us"], told["until_us"], well, told["version"],
        is_settled_for_good=True,
    )  # fmt: skip


class DailyScan(Daily):
    """Looks at every model with a profile."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._windows = runtime, WindowReader(runtime.codec)
        clocks = {name: LocalHours(plan.contract.timezone) for name, plan in runtime.plans.items()}
        super().__init__("weak", clocks, share=SHARE_MAX)

    def last(self, model: str) -> dict[str, Any] | None:
        """See :func:`last`."""
        return last(self._runtime.config.state_dir, model)

    def do(self, model: str, until_us: int) -> None:
        """Look at everything up to here, and tell of what is new."""
        config = self._runtime.config
        with read(self._runtime.engine) as connection:
            delays = read_delays(self._windows, connection, config, Look.of(config, model, until_us))
        told = weak_slices(config, model, until_us=until_us, horizon_us=delays.horizon_us or 0)
        is_regression = config.model(model).contract.target.kind == "regression"
        if told["rows"]:
            tell(config, self._runtime.engine, finds(told, "mae" if is_regression else "accuracy"))
        keep(Paths(config.state_dir).weak(model), told)  # last: a day that was cut short is looked at again
        log.info("weak_slices", model=model, version=told["version"], found=[each["name"] for each in told["slices"]])
