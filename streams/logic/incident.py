"""Alerts and incidents: many sightings, one incident a model, one alert for each new thing that it shows.

An incident opens with the first sighting that is worth waking somebody, is extended once by every further channel and
field, and once more by one that has become critical, and closes when none of its causes was seen for ``quiet_hours``.
Values outside the contract only warn, in an incident of their own, so that a range learnt in winter cannot hold the
other one open. Ids follow from the model, the hour and the cause: the same log gives the same alerts, and a handler may
see one twice.

A person may close one and say what it was. What was *fixed* is taken out of what the monitor learns from, and comes
again as a new incident if it is still there. A *false alarm* and a change that is *accepted* are not told again until
they have been quiet; the hours of the one are as healthy as any other, those of the other are the new normal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from schemas.times import HOUR_US, format_us
from streams.logic.counts import Hour

INFO, PAGE, WARN, CRITICAL = "info", "page", "warn", "critical"
PAGING = (PAGE, CRITICAL)
"""Severities that wake somebody: of one track, so that a page may rise."""
FIXED, FALSE_ALARM, ACCEPTED = "fixed", "false_alarm", "accepted"
VERDICTS = (FIXED, FALSE_ALARM, ACCEPTED)
TRACKS = (PAGE, WARN)
INPUT_CHANNELS = ("contract", "drift", "paired")


@dataclass(frozen=True)
class AlertRecord:
    """An incident was opened, extended or closed.

    Attributes
    ----------
    alert_id, incident_id
        Deterministic.
    model, version
        Whom it is about.
    event_time_us
        End of the hour that showed it.
    severity
        ``critical``, ``page`` or ``warn``.
    state
        ``opened``, ``extended`` or ``closed``.
    channel
        ``contract``, ``drift``, ``paired``, ``bias`` or ``users``.
    subject
        The field, ``bias``, or the rate that changed.
    slice
        Where it shows most.
    window_start_us, window_end_us
        The rows that show it.
    message
        One sentence.
    detail
        The evidence, JSON.
    """

    alert_id: str
    incident_id: str
    model: str
    version: str
    event_time_us: int
    severity: str
    state: str
    channel: str
    subject: str
    slice: str
    window_start_us: int
    window_end_us: int
    message: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class Sighting:
    """Something that one closed hour shows.

    Attributes
    ----------
    channel, subject, slice
        As in an alert.
    hours
        Length of the window that ends with the hour.
    severity
        ``page`` or ``warn``: the track of its incident.
    is_critical
        A page that cannot wait: nearly all rows, or answers that are far off.
    message, detail
        As in an alert; empty where ``is_new`` is False.
    is_new
        Whether it may open or extend an incident; if not, it only keeps a cause alive.
    scope
        Causes of one channel and subject are told apart by it: bias of all rows is news after bias of a slice.
    """

    channel: str
    subject: str
    slice: str
    hours: int
    severity: str = PAGE
    message: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    is_new: bool = True
    scope: str = ""
    is_critical: bool = False

    @property
    def key(self) -> str:
        """What it is a sighting of."""
        return f"{self.channel}/{self.subject}{'/' + self.scope if self.scope else ''}"


@dataclass
class Incident:
    """An open incident.

    Attributes
    ----------
    incident_id
        Deterministic.
    severity
        Of its track.
    opened
        Hour that opened it.
    causes
        Last hour that showed each cause, by :attr:`Sighting.key`.
    since
        First hour that showed it.
    first
        Channel, subject and slice of what opened it.
    critical
        The causes that were told as critical.
    """

    incident_id: str
    severity: str
    opened: Hour
    causes: dict[str, Hour]
    since: dict[str, Hour]
    first: tuple[str, str, str]
    critical: list[str] = field(default_factory=list)

    @property
    def worst(self) -> str:
        """Of all that it has shown."""
        return CRITICAL if self.critical else self.severity

    def copy(self) -> Incident:
        """Another one that may show more."""
        return replace(self, causes=dict(self.causes), since=dict(self.since), critical=list(self.critical))


@dataclass
class Incidents:
    """The open incidents of one model: at most one that pages and one that warns.

    Attributes
    ----------
    model, version
        Whose.
    quiet_hours
        Hours without any of its causes after which an incident closes.
    open
        By severity.
    past
        (channel, first hour, last hour) of the causes of closed paging incidents.
    dismissed
        Last hour that showed what a person dismissed (channel and subject, wherever it shows), by severity.
    """

    model: str
    version: str
    quiet_hours: int
    open: dict[str, Incident] = field(default_factory=dict)
    past: list[tuple[str, Hour, Hour]] = field(default_factory=list)
    dismissed: dict[str, dict[str, Hour]] = field(default_factory=dict)

    def is_dismissed(self, key: str, severity: str = PAGE) -> bool:
        """Whether a person said that this cause needs nobody."""
        return _about(key) in self.dismissed.get(severity, {})

    def is_open(self, key: str, severity: str = PAGE) -> bool:
        """Whether the open incident has this cause."""
        incident = self.open.get(severity)
        return incident is not None and key in incident.causes

    def subjects(self) -> set[str]:
        """What the open incidents are about, by any channel."""
        return {key.split("/")[1] for incident in self.open.values() for key in incident.causes}

    def blames_inputs(self) -> bool:
        """Whether the open incident says that inputs are wrong."""
        incident = self.open.get(PAGE)
        return incident is not None and any(_channel(key) in INPUT_CHANNELS for key in incident.causes)

    def unhealthy(self, now: Hour, *channels: str) -> list[tuple[Hour, Hour]]:
        """Hours [first, end) in which a paging cause of these channels was seen; of an open incident up to ``now``."""
        intervals = [(first, last + 1) for channel, first, last in self.past if channel in channels]
        incident = self.open.get(PAGE)
        if incident is not None:
            intervals += [(first, now + 1) for key, first in incident.since.items() if _channel(key) in channels]
        return intervals

    def step(self, hour: Hour, sightings: list[Sighting]) -> list[AlertRecord]:
        """Take in what one closed hour shows."""
        alerts = [alert for sighting in sightings for alert in self._take(hour, sighting)]
        for severity in sorted(self.open):
            incident = self.open[severity]
            if hour - max(incident.causes.values()) >= self.quiet_hours:
                alerts.append(self._close(hour, incident))
        for severity, causes in self.dismissed.items():
            self.dismissed[severity] = {key: last for key, last in causes.items() if hour - last < self.quiet_hours}
        return alerts

    def settle(self, incident_id: str, verdict: str) -> Incident | None:
        """A person closed an incident; the one that was open, if it was.

        Parameters
        ----------
        verdict
            ``fixed``, ``false_alarm`` or ``accepted``.
        """
        incident = next((each for each in self.open.values() if each.incident_id == incident_id), None)
        if incident is None:
            return None
        del self.open[incident.severity]
        if verdict == FIXED:
            self._remember(incident)
        else:
            dismissed = self.dismissed.setdefault(incident.severity, {})
            for key, last in incident.causes.items():
                dismissed[_about(key)] = max(last, dismissed.get(_about(key), last))
        return incident

    def _remember(self, incident: Incident) -> None:
        if incident.severity == PAGE:
            self.past += [(_channel(key), incident.since[key], seen) for key, seen in sorted(incident.causes.items())]

    def _take(self, hour: Hour, sighting: Sighting) -> list[AlertRecord]:
        incident = self.open.get(sighting.severity)
        if incident is not None and sighting.key in incident.causes:
            incident.causes[sighting.key] = hour
            is_rise = sighting.is_critical and sighting.is_new and sighting.key not in incident.critical
            return [self._alert(hour, incident, sighting, "extended", rise=True)] if is_rise else []
        if self.is_dismissed(sighting.key, sighting.severity):
            self.dismissed[sighting.severity][_about(sighting.key)] = hour
            return []
        if not sighting.is_new:
            return []
        state = "extended"
        if incident is None:
            state = "opened"
            stamp = format_us((hour + 1) * HOUR_US).replace("-", "").replace(":00:00Z", "Z")
            name = f"{self.model}-{stamp}{'' if sighting.severity == PAGE else '-' + sighting.severity}"
            first = (sighting.channel, sighting.subject, sighting.slice)
            incident = Incident(name, sighting.severity, hour, {}, {}, first)
            self.open[sighting.severity] = incident
        incident.causes[sighting.key] = incident.since[sighting.key] = hour
        return [self._alert(hour, incident, sighting, state)]

    def _close(self, hour: Hour, incident: Incident) -> AlertRecord:
        del self.open[incident.severity]
        self._remember(incident)
        channel, subject, slice_name = incident.first
        last = max(incident.causes.values())
        message = f"Nothing of it was seen for {self.quiet_hours} hours; it lasted {last - incident.opened + 1} hours."
        detail = {"causes": sorted(incident.causes), "opened_us": (incident.opened + 1) * HOUR_US}
        hours = last - incident.opened + 1
        sighting = Sighting(channel, subject, slice_name, hours, incident.severity, message, detail)
        return self._alert(hour, incident, sighting, "closed")

    def _alert(
        self, hour: Hour, incident: Incident, sighting: Sighting, state: str, *, rise: bool = False
    ) -> AlertRecord:
        suffix = "closed" if state == "closed" else f"{sighting.key}/{CRITICAL}" if rise else sighting.key
        if sighting.is_critical:
            incident.critical.append(sighting.key)
        end_us = (hour + 1) * HOUR_US
        return AlertRecord(
            alert_id=f"{incident.incident_id}/{suffix}",
            incident_id=incident.incident_id,
            model=self.model,
            version=self.version,
            event_time_us=end_us,
            severity=incident.worst if state == "closed" else CRITICAL if sighting.is_critical else incident.severity,
            state=state,
            channel=sighting.channel,
            subject=sighting.subject,
            slice=sighting.slice,
            window_start_us=end_us - sighting.hours * HOUR_US,
            window_end_us=end_us,
            message=sighting.message,
            detail=sighting.detail,
        )

    def copy(self) -> Incidents:
        """Others, to judge an hour with or to look ahead."""
        held = {severity: incident.copy() for severity, incident in self.open.items()}
        dismissed = {severity: dict(causes) for severity, causes in self.dismissed.items()}
        return replace(self, open=held, past=list(self.past), dismissed=dismissed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a snapshot."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Incidents:
        """Read what :meth:`to_dict` gave."""
        held = {
            severity: Incident(**{**item, "first": tuple(item["first"])}) for severity, item in data["open"].items()
        }
        past = [(channel, first, last) for channel, first, last in data["past"]]
        return cls(data["model"], data["version"], data["quiet_hours"], held, past, data["dismissed"])


def _about(key: str) -> str:
    return "/".join(key.split("/")[:2])


def _channel(key: str) -> str:
    return key.partition("/")[0]
