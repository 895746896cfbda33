"""The short form of ``make calibrate-flights``: two months, two faults, the usual rules."""

from __future__ import annotations

import pytest

from schemas.times import format_us, parse_time
from streams.demo.faults import FAULTS
from streams.lab.recording import watch
from streams.logic.policy import MonitorPolicy
from tests.calibrate.flights import peers, planted, recording, report, trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
UNTIL_US = parse_time("2013-06-01T00:00:00-04:00")
MOMENTS = {"ev-zero": parse_time("2013-05-15T11:00:00Z"), "state-frozen": parse_time("2013-05-08T15:00:00Z")}


def test_two_months_of_flights_wake_somebody_when_there_is_a_reason_and_two_faults_are_found() -> None:
    whole, departures = recording()
    healthy = watch(whole, MonitorPolicy(), remember_us=MOMENTS.values(), until_us=UNTIL_US)
    pages = {format_us(page.event_time_us)[:10]: page for page in healthy.pages}
    assert len(pages) <= 5
    assert pages["2013-04-22"].detail["verdict"] == "world"
    assert "drift" not in {page.channel for page in healthy.pages}
    found = {kind: planted(healthy, departures, FAULTS[kind], moment) for kind, moment in MOMENTS.items()}
    for each in found.values():
        assert each.hours is not None
        assert each.hours <= 24
        assert each.is_right
    assert "controllers" in "\n".join(report(healthy, list(found.values())))
    trials = [trial(whole, departures, FAULTS[kind], moment) for kind, moment in MOMENTS.items()]
    usual = {each.name: each for each in peers(whole, trials, len(healthy.pages), UNTIL_US)}
    for name in ("psi:0.2:daily", "ks:0.05:daily", "w1:0.1:daily", "js:0.1:daily", "adwin:0.002:daily"):
        assert usual[name].usual.alarms == usual[name].usual.windows, "every day something"
    assert usual["psi:0.2:daily"].usual.feature_alarms / usual["psi:0.2:daily"].usual.months > 100
