"""``flywheel trace``: one prediction, from its input to the version that learnt from it."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from streams.cli import Session, brokers_option, echo_json, json_option, pass_session

WIDTH = 80
MARGIN = 12


@click.command()
@click.argument("prediction_id", metavar="ID")
@click.option("--model", help="Whose prediction; needed only where several models know the id.")
@click.option("--ask/--no-ask", default=True, help="Ask the versions what they answer to the row now.")
@brokers_option
@json_option
@pass_session
@click.pass_context
def trace(
    ctx: click.Context,
    session: Session,
    prediction_id: str,
    model: str | None,
    ask: bool,
    brokers: str | None,
    as_json: bool,
) -> None:
    """Follow one prediction from its input to the version that learnt from it.

    ID is a prediction id, or a review item's name (PREDICTION/RULE). Ends with code 1 when nothing is known of it.
    """
    from schemas.registry import Codec
    from streams.ends import EndsFinder
    from streams.registry import open_registry
    from streams.status import open_for_reading
    from streams.trace import Tracer

    config = session.load(brokers=brokers)
    engine = open_for_reading(config)
    try:
        tracer = Tracer(config, engine, Codec(open_registry(config)), EndsFinder(config)())
        told = tracer.trace(prediction_id, model, asks=ask)
    finally:
        engine.dispose()
    if as_json:
        echo_json(told)
    else:
        click.echo("\n".join(lines(told)))
    if not told["is_found"]:
        ctx.exit(1)


def lines(told: dict[str, Any]) -> list[str]:
    """The trace for people: at most 80 columns."""
    found: list[str] = []
    for each in told["traces"]:
        found += [*_row("id", f"{told['prediction_id']} of {each['model']}"), *_events(each), *_people(each)]
        found += [*_retrain(each), *_list("not found", each["missing"]), ""]
    return found + _list("note", told["notes"])


def _row(title: str, text: str) -> list[str]:
    """A titled paragraph; what came from events cannot steer the terminal."""
    from labeling.render import plain

    wrapped = textwrap.wrap(plain(text), WIDTH - MARGIN, break_on_hyphens=False) or [""]
    return [f"{title if at == 0 else '':<{MARGIN}}{line}" for at, line in enumerate(wrapped)]


def _list(title: str, texts: list[str]) -> list[str]:
    return [line for at, text in enumerate(texts) for line in _row(title if at == 0 else "", text)]


def _at(place: dict[str, Any]) -> str:
    return f"{place['event_time']}  ({place['topic']}-{place['partition']} at {place['offset']})"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def _pairs(values: dict[str, Any]) -> str:
    return "  ".join(f"{name}={_value(value)}" for name, value in values.items())


def _events(each: dict[str, Any]) -> list[str]:
    found: list[str] = []
    asked, answer, outcome = each["input"], each["prediction"], each["outcome"]
    if asked:
        found += [*_row("input", _at(asked)), *_row("", _pairs(asked["features"]))]
    if answer:
        found += _row("prediction", _at(answer))
        found += _row("", f"{answer['version']} ({answer['role']}) said {_said(answer)}")
    for noun, count in each["duplicates"].items():
        if count:
            found += _row("", f"{count} duplicates of the {noun.removesuffix('s')} did not count")
    for at, told in enumerate(each["feedback"]):
        counts = "counts" if told["counts"] else "does not count"
        found += _row("feedback" if at == 0 else "", _at(told))
        value = told["label"] if told["label"] is not None else told["value"]
        found += _row("", f"{told['kind']} {_value(value)}: {counts}, {told['why']}")
        if told["facts"]:
            found += _row("", _pairs(told["facts"]))
    if outcome:
        right = {True: "the answer was right", False: "the answer was wrong", None: ""}[outcome["is_right"]]
        loss = f"log loss {outcome['log_loss']:.4f}" if "log_loss" in outcome else ""
        error = f"error {outcome['error']:+.6g}" if "error" in outcome else ""
        parts = [f"{_value(outcome['truth'])} ({outcome['by']})", right, loss, error]
        found += _row("outcome", ", ".join(part for part in parts if part))
    said = [f"{a['severity'].upper()} {a['channel']} {a['subject']} ({a['slice']}) {a['time']}" for a in each["alerts"]]
    return found + _list("alerts", said)


def _said(answer: dict[str, Any]) -> str:
    label = f"{answer['label']}, " if answer["label"] is not None else ""
    return f"{label}score {_value(answer['score'])}"


def _people(each: dict[str, Any]) -> list[str]:
    items = []
    for item in each["items"]:
        result = " ".join(word for word in (item["verdict"], item["answer"]) if word)
        chance = f", picked with probability {item['selection_probability']:g}"
        suspect = f", suspect: {item['suspect']}" if item["suspect"] else ""
        state = f"{item['state']}{f' ({result})' if result else ''}"
        items.append(f"{item['rule']}: item {item['item_id']} is {state}{chance}{suspect}")
    labels = []
    for event in each["labels"]:
        word = " ".join(word for word in (event["verdict"], event["answer"]) if word)
        stands = "" if event["is_standing"] or event["kind"] != "submitted" else " (taken back)"
        reason = f": {event['reason']}" if event["reason"] else ""
        labels.append(f"{event['time']} {event['actor']} {event['kind']} {word}{stands}{reason}")
    proposals = [f"{p['kind']} {p['cause']}: {p['state']}" for p in each["proposals"]]
    return _list("failure", items) + _list("labels", labels) + _list("proposals", proposals)


def _first_reason(reason: str) -> str:
    """The gate's first reason, and how many more there are; --json has all."""
    first, *more = reason.split("; ")
    return f"{first} (and {len(more)} more)" if more else first


def _retrain(each: dict[str, Any]) -> list[str]:
    datasets = []
    for held in each["datasets"]:
        place = held.get("note") or f"{held['split']}, y {_value(held['y'])} from {held['source']}"
        datasets.append(f"{held['dataset'][:12]} as of {held['as_of']}: {place}")
    runs = []
    for run in each["runs"]:
        made = f" {run['version']}" if run["version"] else ""
        runs.append(f"{run['run_id']} ({run['trigger']}: {run['reason']}) {run['state']}{made}")
        runs += [f"- {c['recipe']} {c['verdict']}: {_first_reason(c['reason'])}" for c in run["candidates"]]
    versions = [
        f"{v['version']} ({v['trainer']}, {v['recipe']}) {'learnt from it' if v['learnt'] else 'did not learn from it'}"
        for v in each["versions"]
    ]
    answers = []
    for answer in each["answers"]:
        right = {True: "right", False: "wrong", None: ""}[answer["is_right"]]
        told = answer.get("note") or f"{_said(answer)} {right}"
        answers.append(f"{answer['version']}: {told}")
    found = _list("datasets", datasets) + _list("runs", runs) + _list("versions", versions)
    found += _list("answers now", answers)
    case, fixed = each["regression_case"], each["fixed_by"]
    if fixed:
        found += _row("fixed by", f"{fixed['version']}: {fixed['why']}")
    if case and case["waived_by"]:
        found += _row("", f"waived by {case['waived_by']}: {case['waived_reason']}")
    return found
