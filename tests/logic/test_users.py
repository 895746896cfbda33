"""Users' words are a series of their own: a change is told, a healthy spread is not, and few words say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from retrain.testing import small_contract, small_rows
from schemas.parts import USER_EDITED, USER_RIGHT, USER_WRONG, N, Part
from schemas.profile import build_profile
from schemas.times import DAY_US, HOUR_US
from streams.logic.monitor import Monitor, MonitorInfo
from streams.logic.policy import MonitorPolicy
from streams.logic.users import BASELINE_DAYS, DAYS_A_FALSE_WARNING, UserDay, judge_users


def days(
    rng: np.random.Generator, count: int, *, words: int = 200, spread: float = 0.0, accept: float = 0.8
) -> list[UserDay]:
    found = []
    for n in range(count):
        share = float(np.clip(accept + spread * rng.normal() + (0.02 if n % 7 < 2 else 0.0), 0.01, 0.99))
        said = int(rng.poisson(words))
        accepted, edited, rejected = rng.multinomial(said, [share, (1 - share) * 0.7, (1 - share) * 0.3]).tolist()
        found.append(UserDay(5 * said, accepted, edited, rejected))
    return found


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_days_that_differ_as_days_do_warn_as_rarely_as_promised(spread: float) -> None:
    rng, looks, warned = np.random.default_rng(1), 0, 0
    for _ in range(30):
        series = days(rng, 120, spread=spread)
        for end in range(40, 121):
            looks += 1
            warned += bool(judge_users(series[:end]))
    assert warned <= 2 * looks / DAYS_A_FALSE_WARNING


def test_a_change_is_told_within_days_and_by_what_changed() -> None:
    rng = np.random.default_rng(2)
    before, after = days(rng, 40, spread=0.03), days(rng, 3, spread=0.03, accept=0.5)
    found = judge_users([*before, *after])
    assert {change.measure for change in found} >= {"accept_rate", "edit_rate"}
    assert found[0].share < found[0].usual if found[0].measure == "accept_rate" else found[0].share > found[0].usual
    assert not judge_users([*before, *days(rng, 3, spread=0.03, accept=0.9)]), "better is no warning"


def test_few_words_or_a_short_past_say_nothing() -> None:
    rng = np.random.default_rng(3)
    assert not judge_users([])
    assert not judge_users([*days(rng, 10), *days(rng, 1, accept=0.1)])
    assert not judge_users([*days(rng, BASELINE_DAYS), *[UserDay(5, 0, 1, 4)]])
    assert not judge_users([UserDay(100, 0, 0, 0)] * 40)


def test_the_monitor_warns_once_and_closes_when_users_are_content_again() -> None:
    rng = np.random.default_rng(4)
    series = [*days(rng, 40), *days(rng, 4, accept=0.5), *days(rng, 20)]
    info = MonitorInfo("m", "1", "UTC")
    profile = build_profile(small_rows(5), small_contract().fields, model="m", labels=("late", "on_time"))
    monitor = Monitor(MonitorPolicy(), info, profile, 0)
    words = np.array([USER_RIGHT, USER_EDITED, USER_WRONG], np.int32)
    for n, day in enumerate(series):
        owner = "m", "1", "champion", "all"
        said = np.array([day.accepted, day.edited, day.rejected])
        monitor.add([Part(*owner, "event", n * DAY_US + 9 * HOUR_US, np.array([N], np.int32), np.array([day.rows]))])
        monitor.add([Part(*owner, "due", n * DAY_US + 20 * HOUR_US, words, said)])
    alerts = monitor.advance(64 * DAY_US)
    assert {(alert.channel, alert.severity) for alert in alerts} == {("users", "warn")}
    assert alerts[0].state == "opened"
    assert alerts[0].event_time_us == 41 * DAY_US + HOUR_US, "when the first bad day has ended"
    assert "no error rate" in alerts[0].message
    assert [alert.state for alert in alerts].count("closed") == 1
    assert alerts[-1].state == "closed"
    assert len({(alert.incident_id, alert.subject, alert.state) for alert in alerts}) == len(alerts)
