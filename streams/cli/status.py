"""``flywheel status``: what flows, what is wrong, and what waits for people."""

from __future__ import annotations

import json
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import click

from streams.cli import Session, brokers_option, echo_json, json_option, pass_session

WIDTH = 80
MARGIN = 12
WATCH_INTERVAL_S = 1.0
HOME_AND_CLEAR = "\x1b[H\x1b[J"
ALERTS_SHOWN = 6
RUNS_SHOWN = 3
STALE_SHOWN = 3
REASONS_SHOWN = 5


@click.command()
@click.option("--model", help="Only this model.")
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C (with --json: a line each).")
@brokers_option
@json_option
@pass_session
def status(session: Session, model: str | None, watch: bool, brokers: str | None, as_json: bool) -> None:
    """Show what flows, what is wrong, and what waits for people.

    Works without a running worker too: then it tells what is in the database.
    """
    from streams.ends import EndsFinder
    from streams.status import open_status

    config = session.load(brokers=brokers)
    reader, find_ends = open_status(config), EndsFinder(config)

    def gather() -> dict[str, Any]:
        return {"state_dir": str(config.state_dir), **reader.gather(find_ends(), model=model)}

    try:
        if watch:
            _watch(gather, as_json)
        elif as_json:
            echo_json(gather())
        else:
            click.echo("\n".join(lines(gather())))
    finally:
        reader.engine.dispose()


def _watch(gather: Callable[[], dict[str, Any]], as_json: bool) -> None:
    """Draw again and again; Ctrl-C is how it ends, and no error."""
    waiter = threading.Event()
    is_screen = sys.stdout.isatty() and not as_json
    try:
        while True:
            told = gather()
            text = json.dumps(told, default=str) if as_json else "\n".join(lines(told))
            click.echo(f"{HOME_AND_CLEAR if is_screen else ''}{text}{'' if as_json or is_screen else chr(10)}")
            waiter.wait(WATCH_INTERVAL_S)
    except KeyboardInterrupt:
        click.echo()


def lines(told: dict[str, Any]) -> list[str]:
    """The status for people: at most 80 columns, no colours."""
    found = [*_head(told), *_events(told)]
    for alert in told["plane_alerts"][:ALERTS_SHOWN]:
        found += _row("alert", f"{alert['severity'].upper()} {alert['since']} {alert['message']}")
    if not told["models"]:
        found += ["", "No model is configured or known yet: 'flywheel init TABLE' begins with one."]
    for name, model in told["models"].items():
        found += ["", *_model(name, model)]
    return found


def _row(title: str, text: str) -> list[str]:
    """A titled paragraph; what came from events cannot steer the terminal."""
    from labeling.render import plain

    wrapped = textwrap.wrap(plain(text), WIDTH - MARGIN, break_on_hyphens=False) or [""]
    return [f"{title if at == 0 else '':<{MARGIN}}{line}" for at, line in enumerate(wrapped)]


def _head(told: dict[str, Any]) -> list[str]:
    broker = told["broker"]
    found = [f"{'state':<{MARGIN}}{told.get('state_dir', '')}  {told['time']}"]
    if broker["is_reachable"]:
        return [*found, *_row("broker", f"{broker['address']} ({broker['cluster']})")]
    return [*found, *_row("broker", f"away: {broker['error']} Below is what the database knows.")]


def _events(told: dict[str, Any]) -> list[str]:
    from streams.status import event_columns

    columns = event_columns(told["events"])
    found = [f"{'events':<{MARGIN}}" + "".join(f"{name:>{_column(name)}}" for name in columns)]
    for noun, row in told["events"].items():
        cells = [_number(row[name]) if name != "lag" or told["lag"] is not None else "?" for name in columns]
        found.append(f"{noun:<{MARGIN}}" + "".join(f"{c:>{_column(n)}}" for c, n in zip(cells, columns, strict=True)))
    shares = told["coverage"] or {}
    parts = [
        f"{_percent(shares[noun])} of {noun}" for noun in ("predictions", "inputs") if shares.get(noun) is not None
    ]
    found += _row("monitored", f"{_number(told['monitored'])}{': ' if parts else ''}{', '.join(parts)}")
    letters = told["dead_letters"]
    if letters["total"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in letters["by_reason"].items())
        found += _row("dead", f"{_number(letters['total'])} letters{': ' if reasons else ''}{reasons}")
    judged = f", judged until {told['judged_until']}" if told["judged_until"] else ""
    found += _row("watermark", f"{told['watermark'] or 'no event yet'}{judged}")
    if told["outbox"]:
        found += _row("outbox", f"{_number(told['outbox'])} events wait to be sent")
    return found


def _column(name: str) -> int:
    return max(len(name) + 2, 8) if name != "in" else 11


def _number(value: int) -> str:
    return f"{value:,}"


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %".replace("100.00 %", "100 %")


def _model(name: str, model: dict[str, Any]) -> list[str]:
    found = _row("model", name)
    champion = model["champion"]
    if champion:
        text = f"{champion['version']} since {champion['since']}, {champion['action']}: {champion['reason']}"
        found += _row("champion", text)
    else:
        seen = ", ".join(f"{v['version']} ({_number(v['monitored'])})" for v in model["versions"])
        found += _row("champion", f"none is registered{'; seen: ' if seen else ''}{seen}")
    found += _row("monitored", f"{_number(model['monitored'])} predictions, {_number(model['truths'])} truths")
    found += _parity(model["parity"])
    found += _coverage(model["coverage"])
    alerts = model["alerts"]
    for at, alert in enumerate(alerts[:ALERTS_SHOWN]):
        where = "" if alert["slice"] == "all" else f" {alert['slice']}"
        about = alert["subject"] if alert["subject"] == alert["channel"] else f"{alert['channel']} {alert['subject']}"
        head = f"{alert['severity'].upper()} {about}{where} since {alert['since']}:"
        found += _row("alerts" if at == 0 else "", f"{head} {alert['message']}")
    if len(alerts) > ALERTS_SHOWN:
        found += _row("", f"and {len(alerts) - ALERTS_SHOWN} more")
    if not alerts:
        found += _row("alerts", "none is open")
    return found + _staleness(model["staleness"]) + _people(model) + _retrain(model["retrain"]) + _quality(model)


def _staleness(told: dict[str, Any] | None) -> list[str]:
    """The features that left training, the farthest first."""
    from streams.logic.scores import shift_of

    if told is None:
        return []
    gone = [each for each in told["features"] if each["level"] != "quiet"]
    count = len(told["features"])
    if not gone:
        learning = "; how its hours differ is still learnt" if told["is_learning"] else ""
        return _row("training", f"all {count} features are as {told['version']} knows them{learning}")
    found = _row("training", f"{len(gone)} of {count} features left what {told['version']} was trained on:")
    for each in gone[:STALE_SHOWN]:
        cells = ", ".join(cell for cell, _ in each["top"])
        orders = max(each["orders"] or 0.0, each["skew_orders"] or 0.0, key=abs)
        line = f"{abs(orders):.1f} orders of magnitude {'above' if orders >= 0 else 'below'} the line"
        found += _row("", f"{each['feature']} since {each['since']}: {shift_of(each['eps']):.2f} sd, {line} ({cells})")
    return found if len(gone) <= STALE_SHOWN else [*found, *_row("", f"and {len(gone) - STALE_SHOWN} more (--json)")]


def _parity(told: dict[str, Any] | None) -> list[str]:
    if told is None:
        return []
    if told["error"]:
        return _row("parity", f"the check of {told['until']} failed: {told['error']}")
    text = f"{told['recomputed']} of {told['sampled']} sampled inputs recomputed until {told['until']}: "
    wrong = [each for each in told["features"] if each["feature"] in told["wrong"]]
    listed = ", ".join(f"{each['feature']} {each['exact_share']:.0%} equal" for each in wrong)
    more = f" and {len(told['wrong']) - len(wrong)} more" if len(told["wrong"]) > len(wrong) else ""
    return _row("parity", text + (f"{listed}{more}" if wrong else "as served"))


def _coverage(coverage: dict[str, Any]) -> list[str]:
    """How many of the checks that there could be are made, and why the others are not."""
    reasons = coverage["why_not"]
    if "checks" not in coverage:
        return _row("coverage", reasons[0])
    figures = f"{coverage['checks_monitored']} of {coverage['checks']} checks of {coverage['features']} features"
    found = _row("coverage", figures)
    for reason in reasons[:REASONS_SHOWN]:
        found += _row("", reason)
    if len(reasons) > REASONS_SHOWN:
        found += _row("", f"and {len(reasons) - REASONS_SHOWN} more reasons (--json)")
    return found


def _people(model: dict[str, Any]) -> list[str]:
    queue, labels, proposals = model["queue"], model["labels"], model["proposals"]
    words = ", ".join(f"{queue[state]} {state}" for state in ("open", "leased", "flagged", "done", "duplicate"))
    said = ", ".join(f"{count} {word}" for word, count in (labels["verdicts"] | labels["answers"]).items())
    found = _row("queue", words)
    found += _row("labels", f"{labels['labels']}, {labels['labels_today']} today{': ' if said else ''}{said}")
    newest = "; ".join(f"{p['kind']} {p['cause']} {p['state']}" for p in proposals["newest"][:2])
    if newest:
        found += _row("proposals", f"{proposals['open']} open; newest: {newest}")
    return found


def _retrain(retrain: dict[str, Any]) -> list[str]:
    last = retrain["last"]
    if last is None:
        return _row("retrain", "not decided yet")
    times = f" ({last['times']} times since {last['since']})" if last["times"] > 1 else ""
    found = _row("retrain", f"{'yes' if last['is_yes'] else 'no'} at {last['last']}: {last['reason']}{times}")
    other = retrain["last_no"] if last["is_yes"] else retrain["last_yes"]
    if other is not None:
        found += _row("", f"before: {'yes' if other['is_yes'] else 'no'} at {other['last']}: {other['reason']}")
    for at, run in enumerate(retrain["runs"][:RUNS_SHOWN]):
        tried = ", ".join(f"{c['recipe']} {c['verdict']}" for c in run["candidates"])
        made = f" {run['version']}" if run["version"] else ""
        text = f"{run['as_of']} {run['state']}{made} ({run['trigger']}): {tried or run['outcome']}"
        found += _row("runs" if at == 0 else "", text)
    return found


def _quality(model: dict[str, Any]) -> list[str]:
    if model.get("quality_error"):
        return _row("quality", model["quality_error"])
    if not model["quality"]:
        return []
    head = f"{'day':<12}{'n':>8}{'matured':>10}{'bias':>9}{'log loss':>10}{'AUC':>8}{'accuracy':>10}"
    found = [f"{'quality':<{MARGIN}}{head}"]
    for day in model["quality"]:
        cells = f"{_number(day['n']):>8}{_percent(day['matured_share']):>10}{_figure(day['bias'], '+.3f'):>9}"
        cells += f"{_figure(day['log_loss']):>10}{_figure(day['auc']):>8}{_figure(day['accuracy']):>10}"
        found.append(f"{'':<{MARGIN}}{day['day']:<12}{cells}")
    return found


def _figure(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)
