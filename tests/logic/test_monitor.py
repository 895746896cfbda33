"""The monitor: quiet in a healthy world, awake in a broken one, and the same after a restart."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest

from schemas.parts import N_INPUT, PAIRED, PAIRED_DIFFER, Part
from schemas.profile import CELL_NULL, Profile
from schemas.times import DAY_US, HOUR_US
from streams.logic.baseline import Spread
from streams.logic.bias import BiasSpread, BiasWindow
from streams.logic.counts import SCALARS, HourlyCounts
from streams.logic.course import Course
from streams.logic.impact import ImpactEvidence
from streams.logic.incident import PAGING, AlertRecord, Incidents, Sighting
from streams.logic.invariants import Invariants, Runs
from streams.logic.monitor import Monitor
from streams.logic.paired import PairedRecord
from streams.logic.policy import MonitorPolicy
from streams.logic.sightings import bias_sighting
from streams.logic.staleness import Meter
from streams.logic.state import SnapshotMismatchError, restore, snapshot
from streams.logic.still import Still
from streams.logic.testing import (
    FIRST_US,
    Fault,
    World,
    learn_profile,
    make_impact,
    make_monitor,
    make_parts,
    make_rows,
)

START_DAY, FAULT_DAY, END_DAY = 48, 54, 58
DEFAULT, STATIONARY = MonitorPolicy(), MonitorPolicy(stationary=True)


def later(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(pl.col("delay") + 1.5)


def zero_in_the_south(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(delay=pl.when(pl.col("region") == "south").then(0.0).otherwise("delay"))


def missing(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(level=pl.lit(None, pl.Float64))


def renamed(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(region=pl.col("region").replace({"north": "N"}))


def frozen(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(level=pl.lit(0.8))


def harmless(rows: pl.DataFrame) -> pl.DataFrame:
    """A true change of a feature that the answers hardly depend on."""
    return rows.with_columns(pl.col("level") * 0.6)


def as_a_sign(rows: pl.DataFrame) -> pl.DataFrame:
    """Of a feature that the answers hardly depend on only the sign is left, in other numbers."""
    return rows.with_columns(level=2.0 * pl.col("level").sign())


def a_third_missing(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(level=pl.when(pl.col("event_time") % 3 > 0).then("level"))


def world_changed(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(y=pl.when(pl.col("event_time") % 10 < 4).then(1.0).otherwise("y"))


@cache
def world() -> World:
    return World(END_DAY)


@cache
def served(fault: Fault | None) -> pl.DataFrame:
    return world().served(fault, from_day=FAULT_DAY)


@cache
def profile() -> Profile:
    return learn_profile(served(None).filter(pl.col("event_time") < FIRST_US + START_DAY * DAY_US))


def day_us(day: float) -> int:
    return FIRST_US + int(day * DAY_US)


@cache
def served_parts(fault: Fault | None) -> list[Part]:
    return make_parts(served(fault).filter(pl.col("event_time") >= day_us(START_DAY)), profile())


@cache
def learnt(policy: MonitorPolicy) -> bytes:
    """A monitor that has learnt the healthy history and stands before its first hour."""
    monitor = make_monitor(profile(), START_DAY, policy)
    monitor.add(make_parts(served(None).filter(pl.col("event_time") < day_us(START_DAY)), profile()))
    monitor.advance(day_us(START_DAY) + HOUR_US)
    return snapshot(monitor)


def fresh(policy: MonitorPolicy = DEFAULT) -> Monitor:
    return restore(learnt(policy), policy, profile())


def run(fault: Fault | None) -> list[AlertRecord]:
    monitor = fresh()
    monitor.add(served_parts(fault))
    return monitor.advance(day_us(END_DAY), make_impact(served(fault)))


def test_nobody_is_woken_in_a_healthy_world() -> None:
    assert run(None) == []


def test_what_was_harmless_at_night_is_asked_again_by_day_and_not_every_day() -> None:
    monitor = fresh()
    midnight = day_us(FAULT_DAY) // HOUR_US
    strong = np.zeros_like(monitor.record)
    strong[0, 0, monitor.profile.index["delay"]] = 99.0
    monitor._keep_record(midnight + 1, strong, set())
    asked_for = [float(monitor._known_record(midnight + hour).max()) for hour in (2, 7, 25)]
    assert asked_for[0] == asked_for[2] == 99.0
    assert asked_for[1] < 99.0


def test_a_shift_is_found_within_hours_and_named_with_its_effect() -> None:
    alerts = run(later)
    first = alerts[0]
    assert (first.state, first.channel, first.subject, first.slice) == ("opened", "drift", "delay", "all")
    assert first.severity == "page"
    assert day_us(FAULT_DAY) < first.event_time_us <= day_us(FAULT_DAY) + 4 * HOUR_US
    assert first.detail["impact"] > 0.05
    assert first.detail["verdict"] == "pipe"
    assert abs(first.detail["observed"] - first.detail["expected"]) > 0.2
    assert first.window_end_us == first.event_time_us
    assert len({a.incident_id for a in alerts}) == 1


def test_the_bias_that_follows_extends_the_incident_and_blames_the_pipe() -> None:
    bias = [a for a in run(later) if a.channel == "bias"]
    assert bias
    assert all(a.state == "extended" and a.detail["verdict"] == "pipe" for a in bias)
    assert bias[0].detail["bias"] > 0.1


def test_each_channel_and_field_alerts_once_an_incident() -> None:
    keys = [a.alert_id for a in run(later)]
    assert len(keys) == len(set(keys))


def test_a_fault_of_one_slice_names_the_slice() -> None:
    first = run(zero_in_the_south)[0]
    assert (first.subject, first.slice) == ("delay", "region=south")


@pytest.mark.parametrize(
    ("fault", "rule", "subject"),
    [(missing, "null", "level"), (renamed, "unseen", "region"), (frozen, "frozen", "level")],
)
def test_contract_rules_find_what_needs_no_statistics(fault: Fault, rule: str, subject: str) -> None:
    found = [a for a in run(fault) if a.channel == "contract" and a.severity in PAGING]
    assert found
    assert (found[0].subject, found[0].detail["rule"]) == (subject, rule)
    assert found[0].event_time_us <= day_us(FAULT_DAY) + DAY_US


def test_a_true_change_that_hurts_nothing_wakes_nobody() -> None:
    assert run(harmless) == []


@pytest.mark.parametrize("cut", [None, FAULT_DAY + 0.3])
def test_what_goes_further_than_it_ever_did_is_a_warning_though_it_hurts_nothing(cut: float | None) -> None:
    monitor, impact = fresh(), make_impact(served(as_a_sign))
    monitor.add(served_parts(as_a_sign))
    alerts = monitor.advance(day_us(cut or END_DAY), impact)
    if cut is not None:
        monitor = restore(snapshot(monitor), monitor.policy, profile())
        alerts += monitor.advance(day_us(END_DAY), impact)
    (told,) = [a for a in alerts if a.subject == "level"]
    assert (told.severity, told.state, told.channel, told.slice) == ("warn", "opened", "drift", "all")
    assert told.event_time_us <= day_us(FAULT_DAY) + 12 * HOUR_US
    assert abs(told.detail["impact"]) < DEFAULT.impact
    assert "the answers hardly follow" in told.message


def test_a_field_that_hurts_later_pages_though_it_has_been_warned_of() -> None:
    monitor, impact = fresh(), make_impact(served(as_a_sign))
    monitor.add(served_parts(as_a_sign))
    weights = {day: 0.0 if day < 2 else 1.0 for day in range(END_DAY - FAULT_DAY)}

    def growing(slice_name: str, feature: str, start_us: int, end_us: int) -> ImpactEvidence | None:
        given = impact(slice_name, feature, start_us, end_us)
        weight = weights.get((end_us - 1 - day_us(FAULT_DAY)) // DAY_US, 0.0)
        return given and replace(given, put_back=given.served - weight, scatter=0.0)

    told = [a for a in monitor.advance(day_us(END_DAY), growing) if a.subject == "level" and a.state != "closed"]
    assert told[0].severity == "warn"
    assert {a.severity for a in told[1:]} <= {"critical"}


def test_answers_that_are_others_while_every_input_is_usual_are_a_warning() -> None:
    def sure(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(score=pl.lit(0.97))

    rows = served(None)
    at = pl.col("event_time") >= day_us(FAULT_DAY)
    answered = pl.concat([rows.filter(~at), sure(rows.filter(at))])
    monitor = fresh()
    monitor.add(make_parts(answered.filter(pl.col("event_time") >= day_us(START_DAY)), profile()))
    alerts = monitor.advance(day_us(END_DAY), make_impact(answered))
    told = next(a for a in alerts if a.subject == "@score")
    assert (told.severity, told.channel) == ("warn", "drift")
    assert "impact" not in told.detail


def test_a_third_that_is_missing_where_none_ever_was_is_a_warning_within_hours() -> None:
    (told,) = [a for a in run(a_third_missing) if a.channel == "contract"]
    assert (told.severity, told.subject, told.detail["rule"]) == ("warn", "level", "missing")
    assert told.event_time_us <= day_us(FAULT_DAY) + 3 * HOUR_US
    assert 0.05 < told.detail["share"] < 0.5


@pytest.mark.parametrize("rows", [1, 6])
def test_a_small_slice_whose_field_is_gone_is_judged_by_its_newest_rows_and_once_each(rows: int) -> None:
    """Of one row an hour twenty are within a day; of six, two hours hold too few."""
    layout, rules = fresh().layout, fresh().invariants
    counts, south = HourlyCounts(layout), layout.slice_index["region=south"]
    null = layout.offsets[layout.profile.index["level"]] + CELL_NULL

    def after(hours: int) -> list[tuple[str, int, int]]:
        first = max(counts.cells, default=0) + 1
        for hour in range(first, first + hours):
            counts.cells[hour] = np.zeros((len(layout.slices), layout.columns), np.int32)
            counts.scalars[hour] = np.zeros((len(layout.slices), SCALARS), np.int64)
            counts.cells[hour][south, null] = counts.scalars[hour][south, N_INPUT] = rows
        return [(b.rule, b.hours, b.rows) for b in rules.step(counts, first + hours - 1) if b.feature == "level"]

    needed = -(-DEFAULT.rows_min // rows)
    assert after(needed - 1) == []
    assert after(1) == [("null", needed, needed * rows)]
    counts.scalars[max(counts.cells) + 1] = np.zeros((len(layout.slices), SCALARS), np.int64)
    assert rules.step(counts, max(counts.cells) + 1) == [], "without a row there is nothing new"


def test_a_share_of_nulls_that_the_contract_allows_is_no_warning() -> None:
    monitor = fresh()
    monitor.invariants.null_rates = {"level": 0.4}
    monitor.add(served_parts(a_third_missing))
    alerts = monitor.advance(day_us(END_DAY), make_impact(served(a_third_missing)))
    assert [a for a in alerts if a.channel == "contract"] == []


def test_without_a_model_a_candidate_only_warns() -> None:
    monitor = fresh()
    monitor.add(served_parts(later))
    drift = [a for a in monitor.advance(day_us(FAULT_DAY + 1)) if a.channel == "drift"]
    assert {a.severity for a in drift} == {"warn"}


def test_bias_with_quiet_inputs_is_the_world() -> None:
    alerts = run(world_changed)
    assert {a.channel for a in alerts} == {"bias"}
    assert alerts[0].detail["verdict"] == "world"
    assert "the world, not the pipe" in alerts[0].message


def test_what_one_slice_shows_for_hours_is_a_warning_and_for_a_day_a_page() -> None:
    storm = pl.col("region") == "south"

    def in_the_south(rows: pl.DataFrame) -> pl.DataFrame:
        return world_changed(rows).with_columns(y=pl.when(storm).then("y").otherwise(rows["y"]))

    policy = MonitorPolicy(bias_z=99.0)
    monitor = fresh(policy)
    monitor.add(served_parts(in_the_south))
    alerts = [
        a for a in monitor.advance(day_us(END_DAY), make_impact(served(in_the_south), policy)) if a.slice != "all"
    ]
    told = {(a.severity, a.detail["hours"]) for a in alerts}
    assert told == {("warn", 8), ("page", 24)}
    assert {(a.channel, a.slice, a.detail["verdict"]) for a in alerts} == {("bias", "region=south", "world")}
    first, later_on = sorted(alerts, key=lambda a: a.event_time_us)
    assert first.event_time_us < later_on.event_time_us <= day_us(FAULT_DAY + 1) + HOUR_US


def test_a_slice_that_is_wrong_for_hours_while_inputs_moved_is_the_pipe_and_extends_its_page() -> None:
    window = BiasWindow("region=south", 8, 100, -6.0, 0.2, 0.5, 0.0)
    told = [bias_sighting(window, "slice", DEFAULT, is_pipe=is_pipe) for is_pipe in (False, True)]
    assert [(each.severity, each.detail["verdict"]) for each in told] == [("warn", "world"), ("page", "pipe")]
    assert bias_sighting(replace(window, slice="all"), "all", DEFAULT, is_pipe=False).severity == "page"


def test_alerts_do_not_depend_on_order_or_batching_of_parts() -> None:
    rng = np.random.default_rng(3)
    shuffled = [served_parts(later)[i] for i in rng.permutation(len(served_parts(later)))]
    whole, split = fresh(), fresh()
    whole.add(served_parts(later))
    for batch in np.array_split(np.arange(len(shuffled)), 17):
        split.add(shuffled[i] for i in batch)
    impact = make_impact(served(later))
    expected = whole.advance(day_us(END_DAY), impact)
    found = [a for day in range(START_DAY, END_DAY + 1) for a in split.advance(day_us(day), impact)]
    assert found == expected
    assert expected


def test_a_part_and_its_retraction_leave_no_trace() -> None:
    monitor, other = fresh(), fresh()
    monitor.add(served_parts(later))
    other.add(served_parts(later))
    for part in served_parts(later)[:50]:
        doubled = Part(part.model, "1", part.role, part.slice, part.axis, part.window_us, part.codes, 3 * part.counts)
        undone = Part(part.model, "1", part.role, part.slice, part.axis, part.window_us, part.codes, -3 * part.counts)
        other.add([doubled])
        other.add([undone])
    assert snapshot(monitor) == snapshot(other)


@pytest.mark.parametrize("cut", [START_DAY + 2.5, FAULT_DAY + 0.3, FAULT_DAY + 2.0])
def test_a_restart_gives_the_same_alerts(cut: float) -> None:
    impact = make_impact(served(later))
    whole = fresh()
    whole.add(served_parts(later))
    expected = whole.advance(day_us(END_DAY), impact)
    first = fresh()
    first.add(served_parts(later))
    found = first.advance(day_us(cut), impact)
    again = restore(snapshot(first), first.policy, profile())
    found += again.advance(day_us(END_DAY), impact)
    assert found == expected
    assert snapshot(again) == snapshot(whole)


class UnluckyError(Exception):
    """Stands for what may go wrong on the way: an archive that cannot be read, a model that cannot answer."""


def later_and_frozen(rows: pl.DataFrame) -> pl.DataFrame:
    return frozen(later(rows))


def facts_of_delay() -> list[Part]:
    """What feedback says of it: from the fault on mostly something else than what was served."""
    codes, found = np.array([PAIRED, PAIRED_DIFFER], np.int32), []
    for hour in range(day_us(START_DAY - 30) // HOUR_US, day_us(END_DAY) // HOUR_US):
        counts = np.array([20, 15 if hour * HOUR_US > day_us(FAULT_DAY) else hour % 40 == 0])
        found.append(Part("world", "1", "champion", "all", "fact", hour * HOUR_US, codes, counts, profile().profile_id))
    return found


@cache
def before_the_fault() -> bytes:
    """A monitor of every channel, some hours before."""
    monitor, rows = make_monitor(profile(), START_DAY, STATIONARY), served(later_and_frozen)
    monitor.add([*make_parts(rows, profile()), *facts_of_delay()])
    monitor.advance(day_us(FAULT_DAY - 0.1), make_impact(rows), make_rows(rows))
    return snapshot(monitor)


def judged_by_hour(unlucky: set[int]) -> tuple[list[AlertRecord], bytes]:
    """The days about the fault; an hour that fails is judged again."""
    monitor, table = restore(before_the_fault(), STATIONARY, profile()), served(later_and_frozen)
    given = make_impact(table), make_rows(table)
    found: list[AlertRecord] = []
    for hour in range(monitor.next_hour, day_us(FAULT_DAY + 0.8) // HOUR_US):
        unlucky.add(hour)
        with suppress(UnluckyError):
            found += monitor.advance(STATIONARY.closing(hour), *given)
        unlucky.clear()
        found += monitor.advance(STATIONARY.closing(hour), *given)
    return found, snapshot(monitor)


@cache
def calm() -> tuple[list[AlertRecord], bytes]:
    return judged_by_hour(set())


@pytest.mark.parametrize(
    ("part", "step"),
    [
        (Spread, "fold"), (Spread, "end_day"), (BiasSpread, "fold"), (PairedRecord, "fold"), (Monitor, "_fold_paired"),
        (Monitor, "_begin_day"), (Invariants, "end_day"), (Runs, "step"), (Invariants, "step"), (Still, "judge"),
        (PairedRecord, "judge"), (Course, "see"), (Monitor, "_asked"), (Monitor, "_keep_record"),
        (Monitor, "_see_bias"), (Meter, "add"), (Meter, "judge"), (Monitor, "_see_users"), (Incidents, "_take"),
        (Incidents, "step"),
    ],
)  # fmt: skip
def test_an_hour_that_fails_at_any_step_is_judged_again_as_if_nothing_had_happened(
    part: type, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = calm()
    assert {alert.channel for alert in expected[0]} >= {"contract", "drift", "paired", "bias", "stale"}
    unlucky: set[int] = set()
    failed, real = [], getattr(part, step)

    def fails_once_an_hour(*given: Any, **more: Any) -> Any:
        done = real(*given, **more)
        if unlucky:
            failed.append(unlucky.pop())
            raise UnluckyError
        return done

    monkeypatch.setattr(part, step, fails_once_an_hour)
    assert judged_by_hour(unlucky) == expected
    assert failed


def settled(verdict: str) -> tuple[Monitor, set[str], list[AlertRecord]]:
    """A monitor whose incident a person closed after two days, what had been seen, and what came later."""
    impact = make_impact(served(later))
    monitor = fresh()
    monitor.add(served_parts(later))
    before = monitor.advance(day_us(FAULT_DAY + 2), impact)
    assert not monitor.settle("nobody", verdict)
    assert monitor.settle(before[0].incident_id, verdict)
    monitor = restore(snapshot(monitor), monitor.policy, profile())
    return monitor, {f"{a.channel}/{a.subject}" for a in before}, monitor.advance(day_us(END_DAY), impact)


def test_what_was_closed_as_fixed_and_is_still_there_comes_again() -> None:
    monitor, _, after = settled("fixed")
    assert (after[0].state, after[0].channel, after[0].subject) == ("opened", "drift", "delay")
    assert after[0].event_time_us <= day_us(FAULT_DAY + 2) + 2 * HOUR_US
    assert monitor.incidents.past


@pytest.mark.parametrize("verdict", ["false_alarm", "accepted"])
def test_what_was_dismissed_is_not_told_again(verdict: str) -> None:
    monitor, seen, after = settled(verdict)
    assert "drift/delay" in seen
    assert not seen & {f"{a.channel}/{a.subject}" for a in after}
    assert monitor.incidents.past == []
    assert monitor.is_learning == (verdict == "accepted")


def test_a_dismissed_cause_is_told_again_after_it_has_been_quiet() -> None:
    incidents = Incidents("m", "1", 24)
    (opened,) = incidents.step(100, [Sighting("drift", "delay", "all", 2)])
    incidents.settle(opened.incident_id, "false_alarm")
    for hour in (101, 110, 130):  # seen within every day
        assert incidents.step(hour, [Sighting("drift", "delay", "all", 2)]) == []
    assert incidents.step(154, []) == []
    (again,) = incidents.step(155, [Sighting("drift", "delay", "all", 2)])
    assert again.state == "opened"


def test_a_page_that_becomes_critical_is_told_once_more_and_closes_as_such() -> None:
    incidents = Incidents("m", "1", 24)
    seen, gross = (Sighting("contract", "level", "all", 2, scope="null", is_critical=c) for c in (False, True))
    (opened,) = incidents.step(100, [seen])
    assert incidents.step(101, [seen]) == []
    (risen,) = incidents.step(102, [gross])
    assert (opened.severity, risen.severity, risen.state) == ("page", "critical", "extended")
    assert risen.alert_id == f"{opened.alert_id}/critical"
    again = Incidents.from_dict(incidents.to_dict())
    assert again.step(103, [gross]) == []
    (closed,) = again.step(127, [])
    assert (closed.state, closed.severity, closed.incident_id) == ("closed", "critical", opened.incident_id)


def test_an_alert_carries_what_moved_where_else_and_how_far_it_is_above_the_line() -> None:
    first = run(later)[0]
    assert first.detail["orders"] > 0
    assert first.detail["slices"][0] == "all"
    assert set(first.detail["slices"]) <= {"all", "region=north", "region=south"}
    (most, *_) = first.detail["cells"]
    assert abs(most["observed"] - most["expected"]) > 0.05
    null = next(a for a in run(missing) if a.channel == "contract" and a.severity in PAGING)
    assert (null.severity, null.slice, null.detail["slices"][0]) == ("critical", "all", "all")
    assert null.detail["orders"] == pytest.approx(null.detail["rows"] * np.log10(1 / 0.8))


def test_a_snapshot_of_another_policy_is_refused() -> None:
    monitor = fresh()
    with pytest.raises(SnapshotMismatchError):
        restore(snapshot(monitor), MonitorPolicy(impact=0.1), profile())


def test_a_repaired_fault_closes_its_incident_after_a_quiet_day() -> None:
    policy = MonitorPolicy(drift_hours=(2, 4, 8), bias_hours=(8,))
    mended = pl.concat(
        [served(later).filter(pl.col("event_time") < day_us(FAULT_DAY + 1)),
         served(None).filter(pl.col("event_time") >= day_us(FAULT_DAY + 1))]
    )  # fmt: skip
    monitor = fresh(policy)
    monitor.add(make_parts(mended.filter(pl.col("event_time") >= day_us(START_DAY)), profile()))
    alerts = monitor.advance(day_us(END_DAY), make_impact(mended, policy))
    assert [a.state for a in alerts].count("opened") == 1
    closed = alerts[-1]
    assert closed.state == "closed"
    assert day_us(FAULT_DAY + 2) <= closed.event_time_us <= day_us(FAULT_DAY + 3)


def test_without_history_drift_is_silent_and_says_that_it_learns() -> None:
    monitor = make_monitor(profile(), START_DAY)
    monitor.add(served_parts(later))
    alerts = monitor.advance(day_us(END_DAY), make_impact(served(later)))
    assert monitor.is_learning
    assert alerts == []


def test_the_days_that_drift_still_needs_are_counted_through_baseline_and_spread() -> None:
    known = []
    for days in (17, 27, 30):
        monitor = make_monitor(profile(), START_DAY)
        history = served(None).filter(pl.col("event_time").is_between(day_us(START_DAY - days), day_us(START_DAY)))
        monitor.add(make_parts(history, profile()))
        monitor.advance(day_us(START_DAY) + 2 * HOUR_US)
        known.append(monitor.learning()["drift"])
    assert known == [f"{n} of the 28 healthy days that it needs are known" for n in (10, 14, 16)]
    assert "drift" not in fresh().learning()


def test_a_slice_that_was_declared_later_is_not_judged_by_what_is_not_known_of_it() -> None:
    monitor = make_monitor(profile(), START_DAY)
    parts = make_parts(served(None), profile())
    monitor.add(p for p in parts if p.slice != "region=south" or p.window_us >= day_us(START_DAY + 1))
    assert monitor.advance(day_us(END_DAY), make_impact(served(None))) == []


def test_a_new_version_is_not_judged_by_what_its_inputs_used_to_mean() -> None:
    impact = make_impact(served(later))
    monitor = fresh()
    monitor.add(served_parts(later))
    before = monitor.advance(day_us(FAULT_DAY + 1), impact)
    assert before
    promoted = day_us(FAULT_DAY + 1)
    taught = served(later).with_columns(score=served(None)["score"])  # it knows what the field means now
    history = make_parts(taught.filter(pl.col("event_time") < promoted), profile(), "2")
    following: Monitor = monitor.rebaseline(
        promoted, version="2", profile=profile(), history=history, since_us=day_us(FAULT_DAY)
    )
    following.add(make_parts(taught.filter(pl.col("event_time") >= promoted), profile(), "2"))
    after = following.advance(day_us(END_DAY), impact)
    assert [a.state for a in after] == ["closed"]
    assert after[0].incident_id == before[0].incident_id


def test_hours_that_were_confirmed_as_an_incident_are_forgotten() -> None:
    monitor = fresh()
    monitor.add(served_parts(later))
    monitor.exclude(day_us(FAULT_DAY), day_us(END_DAY))
    assert [a for a in monitor.advance(day_us(END_DAY), make_impact(served(later))) if a.channel == "drift"] == []


def test_the_staleness_meter_names_what_left_training_and_since_when_and_wakes_nobody() -> None:
    monitor = fresh()
    monitor.add(served_parts(later))
    told = monitor.advance(day_us(END_DAY) + HOUR_US, make_impact(served(later)))
    assert "stale" not in {alert.channel for alert in told}
    found = {s.feature: s for s in monitor.staleness()}
    assert found["delay"].orders > 0 > found["region"].orders
    assert found["delay"].level == "warn"
    assert found["region"].level == "quiet"
    assert day_us(FAULT_DAY - 1) <= found["delay"].since * HOUR_US <= day_us(FAULT_DAY + 1)
    assert found["delay"].top[0][0].startswith("[")
    glance = {s.feature: s for s in monitor.look().features}
    assert glance["delay"].orders == found["delay"].orders
    assert not glance["region"].is_exact
    assert glance["region"].orders >= found["region"].orders  # a bound


def test_the_meter_is_the_same_after_a_restart() -> None:
    monitor = fresh()
    monitor.add(served_parts(later))
    monitor.advance(day_us(END_DAY) + HOUR_US)
    again = restore(snapshot(monitor), monitor.policy, monitor.profile)
    assert again.staleness() == monitor.staleness()
    assert snapshot(again) == snapshot(monitor)


def test_the_evidence_of_each_day_is_kept_with_its_line_and_crosses_it_where_the_fault_is() -> None:
    monitor, impact = fresh(), make_impact(served(later))
    monitor.add(served_parts(later))
    monitor.advance(day_us(FAULT_DAY), impact)
    cut = restore(snapshot(monitor), monitor.policy, profile())
    before = monitor.course.days()
    assert len(before) == FAULT_DAY - START_DAY
    for day in before:
        z, line = day.evidence["all"]["delay"]
        assert 1.0 <= z < line
        assert line >= monitor.policy.drift_z
    for each in (monitor, cut):
        each.advance(day_us(END_DAY), impact)
    after = monitor.course.days()
    assert after[: len(before) - 1] == before[:-1]
    faulty = after[len(before)]
    z, line = faulty.evidence["all"]["delay"]
    assert z > line
    assert not {name for fields in faulty.evidence.values() for name in fields if name.startswith("@")}
    assert cut.course.days()[-len(after[len(before) :]) :] == after[len(before) :], "the same after a restart"


def test_a_new_version_keeps_the_days_of_the_one_before() -> None:
    monitor = fresh()
    monitor.add(served_parts(None))
    monitor.advance(day_us(FAULT_DAY + 0.5))
    known = monitor.course.days()
    successor = monitor.rebaseline(day_us(FAULT_DAY + 0.5), version="2", profile=profile())
    assert successor.course.days() == known
    assert {day.version for day in known} == {"1"}
