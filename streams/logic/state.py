"""The monitor's memory as bytes, so that a restart gives the same alerts bit for bit.

One deflated numpy archive without pickles: arrays as they are, everything else as JSON. The policy and the profile are
the caller's: a snapshot names them and is refused when they differ.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from schemas.errors import FlywheelError
from schemas.profile import Profile
from streams.logic.baseline import Baseline, Spread
from streams.logic.bias import BiasSpread, UsualErrors
from streams.logic.incident import Incidents
from streams.logic.invariants import Runs
from streams.logic.monitor import Monitor, MonitorInfo, Today
from streams.logic.paired import PairedRecord
from streams.logic.policy import MonitorPolicy
from streams.logic.staleness import Meter
from streams.logic.tempering import Spread as WindowSpread

FORMAT = 6
STORES = ("cells", "outside", "scalars", "due", "facts", "log")
SPREAD_ARRAYS = ("season", "location", "scale", "cells")
RUN_ARRAYS = ("cell", "rows", "hours", "longest", "longest_hours", "moved")
PAIRED_ARRAYS = ("rows", "differ", "excess", "scale", "strongest")

Arrays = dict[str, npt.NDArray[Any]]


class SnapshotMismatchError(FlywheelError):
    """The monitor's snapshot belongs to another profile, policy, contract or format."""

    action: ClassVar[str] = "Rebuild the monitor from the stored windows."


def snapshot(monitor: Monitor) -> bytes:
    """Everything that the monitor's next alerts depend on, but for policy and profile.

    Of its course only the day under way: whoever keeps a snapshot keeps the days that are over beside it.
    """
    arrays: Arrays = {
        "record": monitor.record,
        "old_record": monitor.old_record,
        "block_record": monitor.block_record,
        "spread_excess": monitor.spread.excess,
        "spread_scale": monitor.spread.scale,
        "spread_seen": monitor.spread.seen,
        "bias_excess": monitor.bias_spread.excess,
        "bias_scale": monitor.bias_spread.scale,
        "null_record": monitor.invariants.null_record,
        "course": monitor.course.best,
    }
    arrays |= {f"paired_{name}": getattr(monitor.paired, name) for name in PAIRED_ARRAYS}
    runs = monitor.invariants.runs
    arrays |= {f"run_{name}": getattr(runs, name) for name in RUN_ARRAYS}
    for name in STORES:
        _pack(arrays, name, getattr(monitor.counts, name))
    _pack(arrays, "day_records", monitor.day_records)
    _pack_meter(arrays, monitor.meter)
    today: dict[str, Any] | None = None
    if monitor.today is not None:
        today = {"day": monitor.today.baseline.day, "days": monitor.today.baseline.days}
        baseline = monitor.today.baseline
        arrays |= {"shares": baseline.shares, "alike": baseline.alike, "usual": monitor.today.usual}
        if monitor.today.errors is not None:
            arrays["errors"] = monitor.today.errors.mean
    meta = {
        "format": FORMAT,
        "profile": monitor.profile.profile_id,
        "policy": monitor.policy.model_dump(mode="json"),
        "info": asdict(monitor.info),
        "start_us": monitor.start_us,
        "is_history_honest": monitor.is_history_honest,
        "next_hour": monitor.next_hour,
        "block": monitor.block,
        "days": [monitor.spread.days, monitor.bias_spread.days, monitor.invariants.learned_days],
        "paired": {name: getattr(monitor.paired, name) for name in ("days", "folded_day", "is_changed")},
        "incidents": monitor.incidents.to_dict(),
        "excluded": monitor.excluded,
        "epochs": monitor.epochs,
        "folded_day": monitor.folded_day,
        "last_pipe": monitor.last_pipe,
        "forgotten_before": monitor.counts.forgotten_before,
        "late": monitor.counts.late,
        "meter": _meta_of(monitor.meter),
        "course_day": monitor.course.day,
        "today": today,
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8)
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **arrays)
    return out.getvalue()


def restore(data: bytes, policy: MonitorPolicy, profile: Profile, today: MonitorInfo | None = None) -> Monitor:
    """The monitor that :func:`snapshot` was taken of.

    Parameters
    ----------
    today
        What the contract says now, of whichever version: nulls, ages and facts that were corrected hold from the next
        hour on.

    Raises
    ------
    SnapshotMismatchError
        If it was taken under another profile, policy or format, or with other slices, another unit or clock.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        arrays: Arrays = {name: archive[name] for name in archive.files}
    meta: dict[str, Any] = json.loads(arrays["meta"].tobytes())
    held = meta["format"], meta["profile"], meta["policy"]
    if held != (FORMAT, profile.profile_id, policy.model_dump(mode="json")):
        raise SnapshotMismatchError
    info = MonitorInfo(
        **{
            **meta["info"],
            "slices": tuple(meta["info"]["slices"]),
            "facts": tuple((field, fact) for field, fact in meta["info"]["facts"]),
            "aged": tuple(meta["info"]["aged"]),
            "null_rates": tuple((field, share) for field, share in meta["info"]["null_rates"]),
        }
    )
    if today is not None:
        if not info.counts_as(today):
            raise SnapshotMismatchError
        info = replace(today, version=info.version)
    monitor = Monitor(policy, info, profile, meta["start_us"])
    monitor.next_hour, monitor.is_history_honest = meta["next_hour"], meta["is_history_honest"]
    spread_days, bias_days, monitor.invariants.learned_days = meta["days"]
    monitor.record, monitor.old_record = arrays["record"], arrays["old_record"]
    monitor.block_record, monitor.block = arrays["block_record"], tuple(meta["block"])
    monitor.spread = Spread(arrays["spread_excess"], arrays["spread_scale"], arrays["spread_seen"], spread_days)
    monitor.bias_spread = BiasSpread(arrays["bias_excess"], arrays["bias_scale"], bias_days)
    paired: dict[str, Any] = {name: arrays[f"paired_{name}"] for name in PAIRED_ARRAYS}
    monitor.paired = PairedRecord(**paired, **meta["paired"])
    monitor.invariants.null_record = arrays["null_record"]
    monitor.invariants.runs = Runs(**{name: arrays[f"run_{name}"] for name in RUN_ARRAYS})
    for name in STORES:
        setattr(monitor.counts, name, _unpack(arrays, name))
    monitor.day_records = _unpack(arrays, "day_records")
    monitor.course.day, monitor.course.best = meta["course_day"], arrays["course"]
    _unpack_meter(arrays, monitor.meter, meta["meter"])
    monitor.incidents = Incidents.from_dict(meta["incidents"])
    monitor.excluded = [(first, last) for first, last in meta["excluded"]]
    monitor.epochs = meta["epochs"]
    monitor.folded_day, monitor.last_pipe = meta["folded_day"], meta["last_pipe"]
    monitor.counts.forgotten_before, monitor.counts.late = meta["forgotten_before"], meta["late"]
    if meta["today"] is not None:
        baseline = Baseline(meta["today"]["day"], meta["today"]["days"], arrays["shares"], arrays["alike"])
        correlation = monitor.spread.correlation(monitor.layout, policy)
        errors = UsualErrors(monitor.local, arrays["errors"]) if "errors" in arrays else None
        usual = arrays["usual"], errors
        monitor.today = Today(baseline, *usual, correlation, monitor.bias_spread.correlation(policy))
    return monitor


def _pack_meter(arrays: Arrays, meter: Meter) -> None:
    running, spread = meter.running, meter.spread
    arrays |= {"meter_total": running.total, "meter_restarts": meter.restarts}
    arrays |= {"meter_told_skew": meter.told_skew, "meter_paged": meter.paged}
    _pack(arrays, "meter_marks", {at: np.append(total, sums) for at, (total, *sums) in running.marks.items()})
    _pack(arrays, "meter_taught", meter.taught)
    _pack(arrays, "meter_recent", meter.recent)
    if spread is not None:
        arrays |= {f"meter_{name}": getattr(spread, name) for name in SPREAD_ARRAYS}


def _meta_of(meter: Meter) -> dict[str, Any]:
    running, spread = meter.running, meter.spread
    return {
        "rows": running.rows, "squares": running.squares, "deltas": running.deltas, "first": meter.first,
        "hours": sorted(meter.hours.items()),
        "period": None if spread is None else spread.period,
    }  # fmt: skip


def _unpack_meter(arrays: Arrays, meter: Meter, meta: dict[str, Any]) -> None:
    running = meter.running
    running.total, running.deltas = arrays["meter_total"], meta["deltas"]
    running.rows, running.squares = meta["rows"], meta["squares"]
    marks = _unpack(arrays, "meter_marks")
    running.marks = {at: (x[:-2].copy(), float(x[-2]), float(x[-1])) for at, x in marks.items()}
    meter.taught, meter.recent = _unpack(arrays, "meter_taught"), _unpack(arrays, "meter_recent")
    meter.restarts, meter.told_skew = arrays["meter_restarts"], arrays["meter_told_skew"]
    meter.paged, meter.first, meter.hours = arrays["meter_paged"], meta["first"], dict(meta["hours"])
    if meta["period"] is not None:
        found = {name: arrays[f"meter_{name}"] for name in SPREAD_ARRAYS}
        meter.spread = WindowSpread(period=meta["period"], **found)


def _pack(arrays: Arrays, name: str, store: dict[int, npt.NDArray[Any]]) -> None:
    hours = sorted(store)
    arrays[f"{name}_at"] = np.array(hours, np.int64)
    if hours:
        arrays[name] = np.stack([store[hour] for hour in hours])


def _unpack(arrays: Arrays, name: str) -> dict[int, npt.NDArray[Any]]:
    hours = arrays[f"{name}_at"].tolist()
    return dict(zip(hours, arrays[name].copy(), strict=True)) if hours else {}
