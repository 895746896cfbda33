"""What each kind of notifier says of an alert; pure."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any
from urllib.parse import quote

from schemas.times import DAY_US, format_us
from streams.notify.policy import NotifierConfig

EVENT_TYPE = "flywheel.alert.v1"
SIGNATURE_HEADER = "X-Flywheel-Signature"
ID_HEADER = "Idempotency-Key"
COLOURS = {"info": "#3b6ea5", "warn": "#d69e2e", "page": "#c53030", "critical": "#742a2a"}
CLOSED_COLOUR = "#2f855a"
HEADER_SAFE = "/ !#$&'()*+,:;=?@[]^_`{|}~<>"
"""What stands in a header as it is; line ends and letters beyond ASCII may not, and a percent sign marks them."""
FIRING_DAYS = 30
"""An Alertmanager forgets an alert at its end; of an open incident it is this far away."""


@dataclass(frozen=True)
class HttpRequest:
    """A POST with a JSON body."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def described(alert: Mapping[str, Any]) -> dict[str, Any]:
    """An alert as JSON: what is posted to a webhook and written to a file.

    Parameters
    ----------
    alert
        A row of the table ``alert``.
    """
    return {
        "type": EVENT_TYPE,
        "id": alert["alert_id"],
        "incident": alert["incident_id"],
        "state": alert["state"],
        "severity": alert["severity"],
        "model": alert["model"],
        "version": alert["version"],
        "time": format_us(alert["time_us"]),
        "channel": alert["channel"],
        "subject": alert["subject"],
        "slice": alert["slice"],
        "message": alert["message"],
        "detail": alert["detail"],
    }


def title(alert: Mapping[str, Any]) -> str:
    """One line: how bad, who, what.

    >>> title({"severity": "page", "state": "opened", "model": "late", "channel": "drift", "subject": "distance",
    ...        "slice": "origin=EWR"})
    'PAGE late: drift of distance (origin=EWR)'
    """
    what = alert["subject"] if alert["subject"] == alert["channel"] else f"{alert['channel']} of {alert['subject']}"
    where = "" if alert["slice"] == "all" else f" ({alert['slice']})"
    head = "CLOSED" if alert["state"] == "closed" else alert["severity"].upper()
    return " ".join(f"{head} {alert['model'] or 'plane'}: {what}{where}".split())


def webhook(alert: Mapping[str, Any], notifier: NotifierConfig, now_s: int) -> HttpRequest:
    """The alert, signed where there is a secret: ``t=SECONDS,v1=HEX`` of HMAC-SHA256 over ``SECONDS.BODY``."""
    body = _json(described(alert))
    headers = {ID_HEADER: quote(alert["alert_id"], safe=HEADER_SAFE)}
    if notifier.secret is not None:
        signed = hmac.new(notifier.secret.get_secret_value().encode(), f"{now_s}.".encode() + body, hashlib.sha256)
        headers[SIGNATURE_HEADER] = f"t={now_s},v1={signed.hexdigest()}"
    return HttpRequest(_url(notifier), body, headers)


def slack(alert: Mapping[str, Any], notifier: NotifierConfig) -> HttpRequest:
    """An incoming webhook's message, as Slack, Mattermost and others take it.

    A category's value is text of a stream: it must neither name a link nor call everybody of a channel.
    """
    facts = [("Model", f"{alert['model'] or 'plane'} {alert['version']}".strip()), ("Incident", alert["incident_id"])]
    attachment = {
        "color": CLOSED_COLOUR if alert["state"] == "closed" else COLOURS[alert["severity"]],
        "fallback": _inert(f"{title(alert)}: {alert['message']}"),
        "text": _inert(alert["message"]),
        "fields": [{"title": name, "value": _inert(value), "short": True} for name, value in facts],
        "footer": f"flywheel alerts show {alert['incident_id']}",
        "ts": alert["time_us"] // 1_000_000,
    }
    return HttpRequest(_url(notifier), _json({"text": _inert(title(alert)), "attachments": [attachment]}))


def alertmanager(alert: Mapping[str, Any], notifier: NotifierConfig, now_us: int) -> HttpRequest:
    """One alert an incident (API v2): its labels stay the same while it grows, its end is far away until it closes.

    One that has become critical is another alert to an Alertmanager: closing ends both.
    """
    ends_us = now_us if alert["state"] == "closed" else now_us + FIRING_DAYS * DAY_US
    firing = {
        "labels": {
            "alertname": "FlywheelIncident", "incident": alert["incident_id"], "severity": alert["severity"],
            "model": alert["model"] or "plane",
        },
        "annotations": {
            "summary": title(alert), "description": alert["message"], "version": alert["version"],
            "slice": alert["slice"],
        },
        "endsAt": format_us(ends_us),
    }  # fmt: skip
    if alert["state"] == "opened":
        firing["startsAt"] = format_us(min(alert["time_us"], now_us))
    sent = [firing]
    if alert["state"] == "closed" and alert["severity"] == "critical":
        sent.append(firing | {"labels": {**firing["labels"], "severity": "page"}})  # type: ignore[dict-item]
    return HttpRequest(_url(notifier).rstrip("/") + "/api/v2/alerts", _json(sent))


def email(alert: Mapping[str, Any], notifier: NotifierConfig) -> EmailMessage:
    """A plain mail; the mails of one incident are one thread."""
    message = EmailMessage()
    message["Subject"] = title(alert)
    message["From"], message["To"] = notifier.sender, ", ".join(notifier.to)
    is_first = alert["state"] == "opened"
    message["Message-ID"] = _message_id(alert["incident_id"] if is_first else alert["alert_id"])
    if not is_first:
        message["In-Reply-To"] = message["References"] = _message_id(alert["incident_id"])
    lines = [
        alert["message"], "",
        f"Model     {alert['model'] or 'plane'} {alert['version']}",
        f"Slice     {alert['slice']}",
        f"Time      {format_us(alert['time_us'])}",
        f"Incident  {alert['incident_id']}", "",
        f"flywheel alerts show {alert['incident_id']}",
    ]  # fmt: skip
    message.set_content("\n".join(lines) + "\n")
    return message


def line(alert: Mapping[str, Any]) -> bytes:
    """One line of a file."""
    return _json(described(alert)) + b"\n"


def _inert(text: str) -> str:
    """Text in which Slack finds no control sequence, such as <!channel> or <URL|words>."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _message_id(text: str) -> str:
    return f"<{hashlib.sha256(text.encode()).hexdigest()[:32]}@flywheel>"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _url(notifier: NotifierConfig) -> str:
    assert notifier.url is not None
    return notifier.url.get_secret_value()
