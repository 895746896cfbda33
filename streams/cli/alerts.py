"""``flywheel alerts``: the incidents of the models, and what people do about them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from streams.cli import Session, echo_json, echo_lines, json_option, pass_session
from streams.cli.labels import default_reviewer

if TYPE_CHECKING:
    import sqlalchemy as sa

    from streams.alerts import Incident

WIDTH = 96
TITLE = 10
DURATION = re.compile(r"(\d+)([mhd])")
UNITS_S = {"m": 60, "h": 3_600, "d": 86_400}
SILENCE_DAYS_MAX = 3_650
STATES = ("open", "acknowledged", "closed")
VERDICTS = {"fixed": "fixed", "false-alarm": "false_alarm", "accepted": "accepted"}

who_option: Callable[..., Any] = click.option(
    "--who", default=default_reviewer, help="Who does it; default: the login name."
)
note_option: Callable[..., Any] = click.option("--note", default="", help="Why, for those who read it later.")


def _duration_us(_context: click.Context, _option: click.Parameter, text: str) -> int:
    match = DURATION.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"'{text}' is not a duration, such as 30m, 8h or 2d.")
    length_s = int(match[1]) * UNITS_S[match[2]]
    if not 0 < length_s <= SILENCE_DAYS_MAX * UNITS_S["d"]:
        raise click.BadParameter(f"'{text}' is not between 1m and {SILENCE_DAYS_MAX}d.")
    return length_s * 1_000_000


@contextmanager
def _database(session: Session, *, writes: bool) -> Iterator[sa.Engine]:
    from streams.status import open_for_reading, open_for_writing

    engine = open_for_writing(session.config) if writes else open_for_reading(session.config)
    try:
        yield engine
    finally:
        engine.dispose()


@click.group()
def alerts() -> None:
    """Incidents: what is wrong, what shows it, who was told, what was done."""


@alerts.command("list")
@click.option("--model", help="Only of this model.")
@click.option(
    "--state", "states", type=click.Choice(STATES), multiple=True, help="Only in this state; may be repeated."
)
@click.option("--all", "is_all", is_flag=True, help="Also those that are closed.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@json_option
@pass_session
def list_command(
    session: Session, model: str | None, states: tuple[str, ...], is_all: bool, limit: int, as_json: bool
) -> None:
    """The newest incidents; without --all or --state those that are not closed."""
    from streams.alerts import find

    with _database(session, writes=False) as engine:
        found = find(engine, model=model, states=states or (STATES if is_all else STATES[:2]), limit=limit + 1)
    is_cut, found = len(found) > limit, found[:limit]
    if as_json:
        echo_json([_told(incident) for incident in found])
    elif found:
        echo_lines(line for incident in found for line in _lines(incident))
    if is_cut:
        click.echo(f"There are more than these {limit}: see --limit.", err=True)
    if not found and not as_json:
        click.echo(f"There are no such incidents in {session.config.state_dir}.", err=True)


@alerts.command("show")
@click.argument("name", metavar="INCIDENT")
@json_option
@pass_session
def show_command(session: Session, name: str, as_json: bool) -> None:
    """One incident: its alerts with their evidence and place in the log, who was told, what was done.

    INCIDENT is its id, or enough of its beginning.
    """
    from streams.alerts import get

    with _database(session, writes=False) as engine:
        incident = get(engine, name)
    if as_json:
        echo_json(_told(incident) | {"alerts": incident.alerts, "notifications": incident.notifications})
    else:
        echo_lines(_page(incident))


@alerts.command("ack")
@click.argument("name", metavar="INCIDENT")
@who_option
@note_option
@pass_session
def acknowledge_command(session: Session, name: str, who: str, note: str) -> None:
    """Say that you look after it: nobody is told that it grows any more, but that it closes."""
    from schemas.times import now_us
    from streams.alerts import acknowledge, get

    with _database(session, writes=True) as engine:
        incident = get(engine, name)
        acknowledge(engine, incident, who, note, now_us())
    click.echo(f"{incident.incident_id} is acknowledged by {who}.")


@alerts.command("close")
@click.argument("name", metavar="INCIDENT")
@click.option("--as", "verdict", type=click.Choice(list(VERDICTS)), required=True, help="What it was.")
@who_option
@note_option
@pass_session
def close_command(session: Session, name: str, verdict: str, who: str, note: str) -> None:
    """Close it, and say what it was; the monitor learns from the answer.

    \b
    fixed        it was real and is over: its hours never teach what is usual.
                 If it is still there, it comes again as a new incident.
    false-alarm  nothing was wrong: its hours are as healthy as any others, and
                 what was seen is not told again until it has been quiet.
    accepted     it is the new normal: later hours are never judged by those
                 before it. Drift is silent until it knows enough days again.
    """
    from schemas.times import now_us
    from streams.alerts import close, get

    with _database(session, writes=True) as engine:
        incident = get(engine, name)
        close(engine, incident, VERDICTS[verdict], who, note, now_us())
    click.echo(f"{incident.incident_id} is closed as {verdict} by {who}.")


@alerts.command("silence")
@click.option("--model", help="Only alerts of this model.")
@click.option(
    "--channel",
    type=click.Choice(["contract", "drift", "paired", "bias", "users", "parity", "weak", "stale", "plane"]),
    help="Only of this channel.",
)
@click.option("--subject", help="Only about this feature.")
@click.option("--slice", "slice_name", metavar="FIELD=VALUE", help="Only in this slice.")
@click.option("--for", "length_us", callback=_duration_us, required=True, metavar="TIME", help="30m, 8h, 2d.")
@who_option
@note_option
@pass_session
def silence_command(
    session: Session,
    model: str | None,
    channel: str | None,
    subject: str | None,
    slice_name: str | None,
    length_us: int,
    who: str,
    note: str,
) -> None:
    """Tell nobody of such alerts for a time; they are kept and shown all the same."""
    from schemas.times import format_us, now_us
    from streams.alerts import add_silence, fitting

    handles = {"model": model, "channel": channel, "subject": subject, "slice": slice_name}
    if not any(handles.values()):
        raise click.UsageError("Say what to silence: --model, --channel, --subject or --slice.")
    if model is not None:
        session.config.model(model)
    now = now_us()
    with _database(session, writes=True) as engine:
        silence_id = add_silence(engine, handles, now + length_us, who, note, now)
        known = fitting(engine, handles)
    click.echo(f"Silence {silence_id} lasts until {format_us(now + length_us)}.")
    if not known:
        click.echo("No alert so far would have been silenced by it: see that every name is as you meant it.", err=True)


@alerts.command("silences")
@json_option
@pass_session
def silences_command(session: Session, as_json: bool) -> None:
    """The silences that are not over."""
    from schemas.times import format_us, now_us
    from streams.alerts import HANDLES, silences

    with _database(session, writes=False) as engine:
        found = silences(engine, now_us())
    if as_json:
        echo_json(found)
        return
    for row in found:
        what = ", ".join(f"{name} {row[name]}" for name in HANDLES if row[name] is not None)
        said = f"{row['silence_id']}  until {format_us(row['until_us'])}  {what}  by {row['who']}  {row['note']}"
        echo_lines([said.rstrip()])
    if not found:
        click.echo("Nothing is silenced.", err=True)


@alerts.command("unsilence")
@click.argument("silence_id", metavar="SILENCE")
@pass_session
def unsilence_command(session: Session, silence_id: str) -> None:
    """End a silence now."""
    from schemas.times import now_us
    from streams.alerts import end_silence

    with _database(session, writes=True) as engine:
        end_silence(engine, silence_id, now_us())
    click.echo(f"Silence {silence_id} is over.")


def _told(incident: Incident) -> dict[str, Any]:
    return {
        "incident": incident.incident_id,
        "model": incident.model,
        "version": incident.version,
        "severity": incident.severity,
        "state": incident.state,
        "opened_us": incident.opened_us,
        "closed_us": incident.closed_us,
        "verdict": incident.verdict,
        "alert_count": len(incident.alerts),
        "message": incident.alerts[0]["message"],
        "actions": incident.actions,
    }


def _lines(incident: Incident) -> list[str]:
    from schemas.times import format_us

    more = f" (+{len(incident.alerts) - 1})" if len(incident.alerts) > 1 else ""
    state = incident.state if incident.verdict is None else f"{incident.state}, {incident.verdict.replace('_', ' ')}"
    head = f"{incident.severity.upper():<8} {state:<12} {format_us(incident.opened_us)}  {incident.incident_id}"
    return [head, f"         {incident.alerts[0]['message']}{more}"]


def _page(incident: Incident) -> list[str]:
    from schemas.times import format_us

    closed = "" if incident.closed_us is None else f", closed {format_us(incident.closed_us)}"
    lines = [
        f"{incident.incident_id}",
        f"{incident.severity} of {incident.model or 'the plane'} {incident.version}: {incident.state}, "
        f"opened {format_us(incident.opened_us)}{closed}",
    ]
    for alert in incident.alerts:
        about = alert["subject"] if alert["subject"] == alert["channel"] else f"{alert['channel']} {alert['subject']}"
        lines += [
            "",
            f"{format_us(alert['time_us'])}  {alert['severity']} {alert['state']}  {about}  slice {alert['slice']}",
        ]
        lines += textwrap.wrap(alert["message"], WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines += [f"  {text}" for text in _evidence(alert["detail"])]
    if incident.actions:
        lines += ["", "What was done"]
    for action in incident.actions:
        what = action["action"] + (f" as {action['verdict'].replace('_', ' ')}" if action["verdict"] else "")
        note = f": {action['note']}" if action["note"] else ""
        lines.append(f"  {format_us(action['time_us'])}  {what} by {action['who']}{note}")
    if incident.notifications:
        lines += ["", "Who was told"]
    for told in incident.notifications:
        tries = f", {told['attempts']} tries" if told["attempts"] > 1 else ""
        error = f": {told['error']}" if told["error"] else ""
        lines.append(f"  {format_us(told['queued_us'])}  {told['notifier']}  {told['state']}{tries}{error}")
    return lines


def _evidence(detail: Mapping[str, Any]) -> list[str]:
    """What shows it and where that is in the log first, then what else the alert knows."""
    from streams.evidence import TOLD, in_words

    lines = []
    for title, said in in_words(detail):
        lines += textwrap.wrap(f"{title:<{TITLE}}{said}", WIDTH - 2, subsequent_indent=" " * TITLE)
    rest = [f"{name} {_short(value)}" for name, value in sorted(detail.items()) if name not in TOLD]
    return lines + textwrap.wrap("; ".join(rest), WIDTH - 2)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "[" + ", ".join(_short(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_short(each)}" for name, each in value.items()) + "}"
    return str(value)
