"""Looks for slices that nobody declared and that are answered worse, over the joined rows of the archive.

The last result of a model is a JSON file in the state directory. A worker looks at every local day, in a thread, and
takes no more than a tenth of the time: of days that go by faster the looks lag behind. What is found is told as an
incident of the version, which wakes nobody: ``warn`` from a tenth of a standard deviation, else ``info``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import structlog

from retrain.joined import Ends, archive_ends, label_value, read_archive, read_outcomes
from retrain.paths import Paths
from schemas import archive
from schemas.contract import Target
from schemas.events import topic
from schemas.parts import SCORE_BINS, delay_code, score_bin
from schemas.times import DAY_US, SECOND_US, format_us
from streams.config import Config
from streams.daily import Daily, Day, keep, kept
from streams.evidence import segments_of
from streams.findings import Finding, Finds, bounded, tell
from streams.history import decided
from streams.ledger import COHORT_DAYS
from streams.logic.counts import LocalHours
from streams.logic.incident import INFO, WARN
from streams.logic.maturity import Delays
from streams.logic.outcomes import Labelled, calibrated
from streams.logic.staleness import EPS_WARN
from streams.logic.weak import Grid, find_weak
from streams.runtime import Runtime

CHANNEL = "weak"
FORMAT = 2
"""Of the file; another one's is not read, the next look writes it anew."""
SHARE_MAX = 0.1
RECORDS_MAX = 400_000
"""Of each topic, the newest: some 200 MB of rows with 20 features, in a worker whose memory is bounded."""
OUTCOMES_MAX = 200_000
"""Of which it is told how long truths take: about so many answers, of all that there are."""

log = structlog.get_logger("flywheel.weak")


def weak_slices(
    config: Config, model: str, *, until_us: int, ends: Ends | None = None, version: str | None = None
) -> dict[str, Any]:
    """What a version answers worse than the rest, of all it answered and whose truth is mature at an event time.

    Parameters
    ----------
    ends
        Where the logs were then; default: all that is in the archive.
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
    ends = archive_ends(config.archive_dir) if ends is None else ends
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
    mature_us = until_us - maturity_us(config, model, ends, until_us)  # younger rows with a truth are not like others
    rows = rows.filter(pl.col("served_version") == found["version"], pl.col("event_time") <= mature_us).with_columns(
        decided(contract.target, until_us).alias("@y")
    )
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
        sizes = _sizes(root, noun, reached)
        total = sum(sizes.values())
        if total > RECORDS_MAX:
            starts[noun] = {place: reached[place] - sizes[place] * RECORDS_MAX // total for place in reached}
    return starts, bool(starts)


def _sizes(root: Path, noun: str, ends: Mapping[tuple[str, int], int]) -> dict[tuple[str, int], int]:
    """How many offsets of each log lie before its end."""
    first: dict[tuple[str, int], int] = {}
    for file in archive.files(root, noun):
        place = (file.cluster, file.partition)
        first[place] = min(first.get(place, file.start), file.start)
    return {place: end - first.get(place, end) for place, end in ends.items()}  # one whose files were removed has none


def maturity_us(config: Config, model: str, ends: Ends, until_us: int) -> int:
    """The age at which most truths of a model have come, as far as it was known at an event time.

    The windows that workers counted would say the same, but they hold what has come since. All versions' answers show
    it, also such as are too old to be looked at: a sample of all ids.
    """
    contract = config.model(model).contract
    total = sum(_sizes(config.archive_dir, "predictions", ends["predictions"]).values())
    rows = read_outcomes(config.archive_dir, contract, ends, until_us, one_in=-(-total // OUTCOMES_MAX))
    if not rows.height:
        return 0
    rows = rows.filter(pl.col("event_time") >= until_us - COHORT_DAYS * DAY_US)
    old = rows.filter(pl.col("event_time") <= until_us - config.join_horizon_s * SECOND_US)
    if not old.height:  # the older half, then
        old = rows.filter(pl.col("event_time") * 2 <= pl.col("event_time").min() + pl.col("event_time").max())
    old = old.filter(pl.col("has_truth"))
    y = pl.lit(0.0) if contract.target.kind == "regression" else pl.col("truth_y").fill_null(0.0)
    if contract.target.kind == "multiclass":
        y = (label_value(pl.col("served_label"), contract.target) == pl.col("truth_y")).fill_null(value=False)
    delays = (old["truth_time"] - old["event_time"]).to_numpy()
    codes = delay_code(delays, old.select(y.cast(pl.Float64)).to_series().to_numpy())
    return Delays.of(Counter(codes.tolist())).horizon_us or 0


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
        self._runtime = runtime
        clocks = {name: LocalHours(plan.contract.timezone) for name, plan in runtime.plans.items()}
        super().__init__("weak", runtime.config, clocks, share=SHARE_MAX)

    def do(self, model: str, day: Day) -> None:
        """Look at everything up to its end, and tell of what is new."""
        config = self._runtime.config
        told = weak_slices(config, model, until_us=day.until_us, ends=day.cut.ends)
        is_regression = config.model(model).contract.target.kind == "regression"
        if told["rows"]:
            tell(config, self._runtime.engine, finds(told, "mae" if is_regression else "accuracy"))
        keep(Paths(config.state_dir).weak(model), told)
        log.info("weak_slices", model=model, version=told["version"], found=[each["name"] for each in told["slices"]])
