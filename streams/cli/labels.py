"""``flywheel labels``: every action on the review queue as a plain command, with ``--json`` for scripts."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import UsageError
from streams.cli import Session, json_option, pass_session

if TYPE_CHECKING:
    from labeling.projection import Proposal
    from labeling.store import LabelStore

JSON_INDENT = 2
Command = Callable[..., None]


def default_reviewer() -> str:
    """The user's login name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "reviewer"


reviewer_option = click.option("--reviewer", default=default_reviewer, help="Who decides; default: the login name.")


def with_store(command: Command) -> Command:
    """Give a command ``--model`` and ``--database`` and call it with the opened :class:`LabelStore` first."""

    def opened(session: Session, /, model: str | None, database: str | None, **given: Any) -> None:
        with open_store(session, model, database) as store:
            command(store, **given)

    update_wrapper(opened, command)  # and the options that the command has so far
    which = click.option("--model", help="Whose queue; may be left out if there is only one model.")
    where = click.option("--database", metavar="URL", help="Default: that of the configuration.")
    return which(where(pass_session(opened)))


@contextmanager
def open_store(session: Session, model: str | None, database: str | None = None) -> Iterator[LabelStore]:
    """The store of a model, with the policy and the contract of the configuration.

    Raises
    ------
    UsageError
        If it is not clear which model is meant.
    """
    from labeling.policy import LabelingPolicy
    from labeling.store import LabelStore
    from schemas.database import open_database

    config = session.load(database=database)
    name = model or _only_model(list(config.models))
    policy, contract = LabelingPolicy(), None
    if name in config.models or database is None:
        configured = config.model(name)
        policy, contract = configured.labeling, configured.contract
    engine = open_database(config.database_url)
    try:
        yield LabelStore(engine, name, policy, contract=contract)
    finally:
        engine.dispose()


def _only_model(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    known = f" Known: {', '.join(sorted(names))}." if names else " No model is configured."
    raise UsageError(f"Which model's queue?{known}", action="Say it with --model NAME.")


def emit(value: Any, as_json: bool, lines: list[str]) -> None:
    """A result on stdout: the JSON value, or lines for a person."""
    if as_json:
        click.echo(json.dumps(value, indent=JSON_INDENT, ensure_ascii=False))
    else:
        for line in lines:
            click.echo(line)


def card_lines(store: LabelStore, token: str, card: Any) -> list[str]:
    """A card for a command that does not read keys: without the help of the keys."""
    from labeling.render import render

    lines = [line.text for line in render(card, now_us=store.clock()) if line.emphasis != "dim"]
    return [*lines, f"Token    {token}"]


@click.group("labels")
def labels() -> None:
    """The review queue: items, labels, proposals."""


@labels.command("next")
@with_store
@reviewer_option
@click.option("--rule", help="Only items of this rule.")
@click.option("--kind", type=click.Choice(["answer", "verdict"]), help="Only items of this kind.")
@click.option("--flagged", is_flag=True, help="Take a flagged item, as an adjudicator.")
@click.option("--item", "item_id", metavar="PREDICTION/RULE", help="Take this item.")
@json_option
def next_command(
    store: LabelStore,
    reviewer: str,
    rule: str | None,
    kind: str | None,
    flagged: bool,
    item_id: str | None,
    as_json: bool,
) -> None:
    """Lease the next item and show it; its token is needed to decide."""
    from labeling.cards import build_card
    from labeling.leases import Filters

    filters = Filters(rule=rule, kind=kind, state="flagged" if flagged else "open")
    claim = store.claim(reviewer, item_id) if item_id else store.next(reviewer, filters)
    if claim is None:
        emit(None, as_json, ["Nothing is left for you in this queue."])
        return
    card = build_card(store, claim)
    emit(card.as_dict(), as_json, card_lines(store, claim.token, card))


@labels.command("submit")
@click.argument("token")
@with_store
@click.option("--answer", metavar="LABEL", help="The right label.")
@click.option("--verdict", help="Why the model was wrong: input_broken, meaning_changed, world, ...")
@click.option("--feature", help="The feature that the verdict is about; default: the suspected one.")
@click.option("--note", default="", help="In your own words.")
@json_option
def submit_command(
    store: LabelStore,
    token: str,
    answer: str | None,
    verdict: str | None,
    feature: str | None,
    note: str,
    as_json: bool,
) -> None:
    """Decide on a leased item."""
    decision = store.submit(token, answer=answer, verdict=verdict, feature=feature, note=note)
    _emit_decision(decision, as_json)


@labels.command("skip")
@click.argument("token")
@with_store
@click.option("--reason", default="", help="Why.")
@click.option("--flag", "is_flag", is_flag=True, help="Hand it to an adjudicator instead.")
@json_option
def skip_command(
    store: LabelStore,
    token: str,
    reason: str,
    is_flag: bool,
    as_json: bool,
) -> None:
    """Leave a leased item to somebody else."""
    _emit_decision(store.flag(token, reason) if is_flag else store.skip(token, reason), as_json)


def _emit_decision(decision: Any, as_json: bool) -> None:
    from labeling.events import record

    event = record(decision.event)
    made = vars(decision.proposal) if decision.proposal else None
    lines = [f"{event['kind']} {event['item_id']}: the item is {decision.state}."]
    if decision.proposal:
        from labeling.render import proposal_lines

        lines += proposal_lines(decision.proposal)
    emit({"event": event, "state": decision.state, "proposal": made}, as_json, lines)


@labels.command("undo")
@with_store
@reviewer_option
@json_option
def undo_command(store: LabelStore, reviewer: str, as_json: bool) -> None:
    """Take your last decision back; ten deep."""
    from labeling.events import record

    undone = store.undo(reviewer)
    if undone is None:
        emit(None, as_json, ["There is nothing to take back."])
        return
    event = record(undone.event)
    token = undone.claim.token if undone.claim else None
    again = f" It is yours again: {token}" if token else ""
    emit(
        {"event": event, "token": token, "withdrawn": vars(undone.withdrawn) if undone.withdrawn else None},
        as_json,
        [f"Taken back: {undone.reverted.kind} {event['item_id']}.{again}"],
    )


@labels.command("list")
@with_store
@click.option("--state", type=click.Choice(["open", "flagged", "done", "duplicate"]), help="Only items of this state.")
@click.option("--rule", help="Only items of this rule.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@click.option("--kept", is_flag=True, help="Show decisions that came too late instead.")
@json_option
def list_command(
    store: LabelStore,
    state: str | None,
    rule: str | None,
    limit: int,
    kept: bool,
    as_json: bool,
) -> None:
    """Items in the queue's order."""
    from labeling.render import plain
    from schemas.times import format_us

    if kept:
        late = store.kept()
        emit(late, as_json, [plain(json.dumps(row, ensure_ascii=False)) for row in late])
        return
    rows = store.items(state=state, rule=rule, limit=limit)
    lines = [f"{'item':<34} {'state':<9} {'prio':>6} {'model said':<12} {'truth':<12} asked"]
    for row in rows:
        said, truth = plain(row["label"] or "-"), plain(row["truth"] or "-")
        head = f"{plain(row['item_id']):<34} {row['state']:<9} {row['priority']:>6.2f}"
        lines.append(f"{head} {said:<12} {truth:<12} {format_us(row['event_time'])}")
    emit(rows, as_json, lines)


@labels.command("stats")
@with_store
@json_option
def stats_command(store: LabelStore, as_json: bool) -> None:
    """Figures of the queue, and the model's quality estimated from the labels."""
    stats, quality = store.stats(), store.quality()
    shown = stats.as_dict() | {"quality": vars(quality)}
    lines = [
        f"items     {stats.items}: {stats.open} open, {stats.leased} leased, {stats.flagged} flagged, "
        f"{stats.done} done, {stats.duplicate} ask what another one asks",
        f"labels    {stats.labels}, {stats.labels_today} today, by {stats.reviewers} reviewers",
        *(f"          {count:>6} {name}" for name, count in (stats.verdicts | stats.answers).items()),
        f"proposals {stats.proposals_open} open",
        _quality_line(quality),
    ]
    emit(shown, as_json, lines)


def _quality_line(quality: Any) -> str:
    if quality.unweighted is None:
        return "quality   nothing is reviewed yet"
    if quality.weighted is None:
        return f"quality   not known: none of the {quality.reviewed} reviewed came by the random audit"
    return (
        f"quality   {quality.weighted:.3f} right ({quality.low:.3f} to {quality.high:.3f}), from {quality.reviewed} "
        f"reviewed, {quality.audited} of them by the random audit; unweighted it would read {quality.unweighted:.3f}"
    )


@labels.command("verify")
@with_store
@click.option("--rebuild", is_flag=True, help="Also write the current state anew from the events.")
@json_option
def verify_command(store: LabelStore, rebuild: bool, as_json: bool) -> None:
    """Check the chain of label events."""
    count = store.verify_chain()
    standing = store.rebuild() if rebuild else None
    lines = [f"The chain of {count} events is whole."]
    if standing is not None:
        lines.append(f"{standing} standing decisions were written anew.")
    emit({"events": count, "rebuilt": standing}, as_json, lines)


@labels.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@with_store
@click.option(
    "--format", "format_", type=click.Choice(["jsonl", "csv", "parquet"]), help="Default: the file name's ending."
)
@json_option
def export_command(store: LabelStore, file: Path, format_: str | None, as_json: bool) -> None:
    """Write every standing label with its provenance and weight to FILE (- for JSON lines on stdout)."""
    from labeling.export import write_labels

    if str(file) == "-":
        for row in store.export():
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    chosen = format_ or file.suffix.removeprefix(".")
    count = write_labels(store.export(), file, chosen)
    emit({"file": str(file), "labels": count}, as_json, [f"{count} labels in {file}."])


@labels.group("proposals")
def proposals_group() -> None:
    """What equal verdicts suggest to do."""


@proposals_group.command("list")
@with_store
@click.option("--state", type=click.Choice(["open", "accepted", "refused", "withdrawn"]))
@json_option
def proposals_list(store: LabelStore, state: str | None, as_json: bool) -> None:
    """Proposals, newest first."""
    from labeling.render import proposal_lines

    made = store.proposals(state)
    lines = [line for p in made for line in [f"{p.proposal_id} {p.kind}: {p.state}", *proposal_lines(p), ""]]
    emit([vars(p) for p in made], as_json, lines or ["There are none."])


@proposals_group.command("accept")
@click.argument("proposal_id")
@with_store
@reviewer_option
@click.option("--reason", default="", help="Why.")
@click.option("--from", "from_", metavar="TIME", help="Correct where it begins (ISO 8601).")
@json_option
def proposals_accept(
    store: LabelStore,
    proposal_id: str,
    reviewer: str,
    reason: str,
    from_: str | None,
    as_json: bool,
) -> None:
    """Accept a proposal: retraining follows it."""
    from schemas.times import parse_time

    try:
        from_us = parse_time(from_) if from_ else None
    except ValueError as error:
        raise UsageError(f"'{from_}' is not a time.", action="Write it as 2026-03-02T09:00:00Z.") from error
    _emit_proposal(store.accept(proposal_id, reviewer, reason, from_us=from_us), as_json)


@proposals_group.command("refuse")
@click.argument("proposal_id")
@with_store
@reviewer_option
@click.option("--reason", default="", help="Why.")
@json_option
def proposals_refuse(
    store: LabelStore,
    proposal_id: str,
    reviewer: str,
    reason: str,
    as_json: bool,
) -> None:
    """Refuse a proposal."""
    _emit_proposal(store.refuse(proposal_id, reviewer, reason), as_json)


def _emit_proposal(proposal: Proposal, as_json: bool) -> None:
    emit(vars(proposal), as_json, [f"{proposal.proposal_id} {proposal.kind}: {proposal.state}."])
