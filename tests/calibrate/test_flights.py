"""The short form of ``make calibrate-flights``: two months, two faults, one peer."""

from __future__ import annotations

import pytest

from schemas.times import format_us, parse_time
from streams.demo.faults import FAULTS
from streams.lab.recording import watch
from streams.logic.policy import MonitorPolicy
from tests.calibrate.flights import planted, planting, recording, report
from tests.calibrate.peers import DAILY, daily

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
    changes = [(at, planting(departures, FAULTS[kind], at), FAULTS[kind].features) for kind, at in MOMENTS.items()]
    psi = daily(DAILY[0], whole, UNTIL_US, changes, len(healthy.pages))
    assert psi.alarms_a_month > 100, "every day something"
