"""Silence that is told before an hour is judged: while nothing comes, event time stands still and no hour closes.

What is foretold are the very alerts, under the same ids, that the hours will give when a later row closes them, so a
replay of the log tells the same. Rows that come after all, later than the clock let expect, close them otherwise; then
what was told is taken back. Only a log that is read as it is written is looked at: of a replay nothing is awaited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from schemas.database import read
from schemas.events import topic
from schemas.times import HOUR_US, MINUTE_US
from streams.logic.incident import AlertRecord
from streams.logic.monitor import Monitor
from streams.raised import alert_of
from streams.tables import alert as alert_table
from streams.tables import source_partition

LIVE_US = 3 * HOUR_US
"""A log whose newest event was older than this when it was read is replayed, not live."""
SLACK_US = 10 * MINUTE_US
"""What has not come this long after its event time is missing for now."""
TAKEN_BACK = "The rows came after all, later than the clock let expect."


class Foresight:
    """What was told of each model before its hour was judged, and is not taken back."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._told: dict[str, dict[str, AlertRecord]] = {}

    def forget(self) -> None:
        """Read again from the database what was told."""
        self._told.clear()

    def live_until(self, cluster: str, quiet_us: int) -> int | None:
        """Event time up to which everything would have come by a time of the clock; None: the log is no live one."""
        columns = source_partition.c
        query = sa.select(columns.updated_us, columns.watermark_us).where(
            columns.cluster == cluster, columns.topic == topic("predictions"), columns.watermark_us.is_not(None)
        )
        with read(self._engine) as connection:
            behind = [row.updated_us - row.watermark_us for row in connection.execute(query)]
        live = [us for us in behind if us <= LIVE_US]
        return quiet_us - max(*live, SLACK_US) if live else None

    def recall(self, monitor: Monitor) -> None:
        """Know what was told of hours that are not judged yet; asked before they are."""
        self._known(monitor)

    def look(self, monitor: Monitor, until_us: int) -> list[AlertRecord]:
        """What is to be told if nothing more comes up to an event time, and was not told yet."""
        known = self._known(monitor)
        found = [alert for alert in monitor.foresee(until_us) if alert.alert_id not in known]
        known |= {alert.alert_id: alert for alert in found}
        return found

    def take_back(self, monitor: Monitor, found: Sequence[AlertRecord]) -> list[AlertRecord]:
        """Close the incidents that were foretold of hours that are judged now, and otherwise.

        Parameters
        ----------
        found
            What the hours gave.
        """
        known = self._known(monitor)
        for alert in found:
            known.pop(alert.alert_id, None)
        judged_us = monitor.next_hour * HOUR_US
        over = [alert for alert in known.values() if alert.event_time_us <= judged_us]
        for alert in over:
            del known[alert.alert_id]
        real = {incident.incident_id for incident in monitor.incidents.open.values()}
        real |= {alert.incident_id for alert in found}
        return [
            replace(
                alert, alert_id=f"{name}/closed", state="closed", message=TAKEN_BACK, detail={}, event_time_us=judged_us
            )
            for name, alert in {alert.incident_id: alert for alert in over}.items()
            if name not in real
        ]

    def _known(self, monitor: Monitor) -> dict[str, AlertRecord]:
        """After a start: open alerts of hours that the monitor has not judged."""
        model = monitor.info.model
        if model not in self._told:
            columns = alert_table.c
            query = sa.select(alert_table).where(
                columns.model == model, columns.channel == "contract", columns.state != "closed",
                columns.closed_us.is_(None), columns.time_us > monitor.next_hour * HOUR_US,
            )  # fmt: skip
            with read(self._engine) as connection:
                self._told[model] = {row.alert_id: alert_of(row) for row in connection.execute(query)}
        return self._told[model]
