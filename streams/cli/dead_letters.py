"""``flywheel dead-letters``: records that could not be worked on: look at them, and send them again after a fix."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import TYPE_CHECKING, Any

import click

from schemas.errors import BrokerUnreachableError, UsageError
from schemas.events import NOUNS, topic
from streams.cli import Session, brokers_option, echo_json, json_option, moment, pass_session

if TYPE_CHECKING:
    from streams.dead_letters import Filters, Replayed
    from streams.originals import Original

WIDTH = 80
MARGIN = 12
HEAD_BYTES = 128
"""Of a value, shown to people; --json has all of it."""
BYTES_A_LINE = 16


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the filters; it gets them as one argument."""

    def called(
        *given: Any, noun: str | None, reason: str | None, partition: int | None, since: Any, until: Any, **more: Any
    ) -> None:
        from streams.dead_letters import Filters

        filters = Filters(noun and topic(noun), reason, partition, since, until)
        command(*given, filters=filters, **more)

    update_wrapper(called, command)
    options = (
        click.option("--topic", "noun", type=click.Choice(NOUNS), help="Only of this topic."),
        click.option("--reason", metavar="CODE", help="Only with this reason; 'stats' explains each."),
        click.option("--partition", type=click.IntRange(0), help="Only of this partition."),
        click.option("--since", callback=moment, metavar="TIME", help="Only records from then on (ISO 8601, UTC)."),
        click.option("--until", callback=moment, metavar="TIME", help="Only records before then."),
    )
    for option in reversed(options):
        called = option(called)
    return called


@click.group("dead-letters")
def dead_letters() -> None:
    """Records that could not be worked on: what they are, why, and how to send them again."""


@dead_letters.command("list")
@filtered
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True)
@json_option
@pass_session
def list_command(session: Session, filters: Filters, limit: int, as_json: bool) -> None:
    """The newest dead letters."""
    from labeling.render import plain
    from schemas.times import format_us
    from streams.dead_letters import find, short_id
    from streams.status import open_for_reading

    engine = open_for_reading(session.config)
    try:
        letters, total = find(engine, filters, limit)
    finally:
        engine.dispose()
    if as_json:
        echo_json({"total": total, "dead_letters": [_told(letter) for letter in letters]})
        return
    for letter in letters:
        mark = "replayed " if letter.replays else ""
        click.echo(f"{format_us(letter.time_us)}  {short_id(letter)}  {letter.reason}  {mark}{plain(letter.detail)}")
    if total > len(letters):
        click.echo(f"{total - len(letters)} more; see --limit.", err=True)
    elif not total:
        click.echo("There are no such dead letters.", err=True)


@dead_letters.command("show")
@click.argument("identifier", metavar="ID")
@brokers_option
@json_option
@pass_session
def show_command(session: Session, identifier: str, brokers: str | None, as_json: bool) -> None:
    """One dead letter: where it came from, what is wrong, its bytes.

    ID is TOPIC/PARTITION/OFFSET, as 'list' shows it (CLUSTER/TOPIC/PARTITION/OFFSET where there were several logs).
    A value that was cut or redacted is read from its topic again, if that still has it.
    """
    from streams.dead_letters import dead_again, get
    from streams.originals import Original, find_originals
    from streams.reasons import reason
    from streams.status import open_for_reading

    config = session.load(brokers=brokers)
    engine = open_for_reading(config)
    try:
        letter = get(engine, identifier)
        again = dead_again(engine, letter)
    finally:
        engine.dispose()
    try:
        original = find_originals(*_log(config), [letter])[letter]
    except BrokerUnreachableError as error:
        original = Original(missing=str(error))
    if as_json:
        told = _told(letter) | {"meaning": reason(letter.reason).meaning, "remedy": reason(letter.reason).remedy}
        told |= {"dead_again": [_told(each) for each in again], "missing": original.missing}
        told |= {name: _base64(getattr(original, name)) for name in ("key", "value")}
        echo_json(told | {"bytes_from": original.source or None})
    else:
        click.echo("\n".join(_lines(letter, original, again)))


@dead_letters.command("replay")
@click.argument("identifiers", metavar="[ID]...", nargs=-1)
@filtered
@click.option("--all", "is_all", is_flag=True, help="Every dead letter.")
@click.option("--again", is_flag=True, help="Also those that were replayed before.")
@brokers_option
@json_option
@pass_session
@click.pass_context
def replay_command(
    ctx: click.Context,
    session: Session,
    identifiers: tuple[str, ...],
    filters: Filters,
    is_all: bool,
    again: bool,
    brokers: str | None,
    as_json: bool,
) -> None:
    """Send records again, as they came, after what was wrong was put right.

    Which: by ID, by filters (those that were not replayed yet), or --all. What can be read now counts once, however
    often it is sent; what still cannot becomes a dead letter again, which names the first. Ends with code 1 when a
    record could not be sent.
    """
    from streams.dead_letters import find, get, replay
    from streams.status import open_for_writing

    if bool(identifiers) + (not filters.is_any) + is_all != 1:
        raise UsageError("Which dead letters?", action="Name IDs, or give filters, or --all: one of the three.")
    config = session.load(brokers=brokers)
    engine = open_for_writing(config)
    try:
        log = _log(config)
        if identifiers:
            letters = [get(engine, identifier) for identifier in dict.fromkeys(identifiers)]
        else:
            letters = [letter for letter in find(engine, filters)[0] if again or not letter.replays]
            letters.reverse()  # in the order in which they came
        done = _say(replay(engine, *log, letters, again=again), as_json)
    finally:
        engine.dispose()
    if any(each.state != "sent" for each in done):
        ctx.exit(1)


@dead_letters.command("stats")
@filtered
@json_option
@pass_session
def stats_command(session: Session, filters: Filters, as_json: bool) -> None:
    """How many there are by topic and reason, and what each reason means."""
    from schemas.times import format_us
    from streams.dead_letters import stats
    from streams.reasons import reason
    from streams.status import open_for_reading

    engine = open_for_reading(session.config)
    try:
        rows = stats(engine, filters)
    finally:
        engine.dispose()
    if as_json:
        echo_json(
            [
                {
                    "topic": row.topic, "reason": row.reason, "count": row.letters, "replayed": row.replayed,
                    "first": format_us(row.first_us), "last": format_us(row.last_us),
                    "meaning": reason(row.reason).meaning, "remedy": reason(row.reason).remedy,
                }
                for row in rows
            ]
        )  # fmt: skip
        return
    if not rows:
        click.echo("There are no such dead letters.", err=True)
    for row in rows:
        again = f", {row.replayed:,} replayed" if row.replayed else ""
        span = f"{format_us(row.first_us)} to {format_us(row.last_us)}"
        click.echo(f"{row.letters:>9,}  {row.reason} on {row.topic}{again}; {span}")
    for code in dict.fromkeys(row.reason for row in rows):
        click.echo("\n".join(["", *_row(code, " ".join(reason(code)), margin=18)]))


# -- inside ----------------------------------------------------------------------------------------------------------


def _log(config: Any) -> tuple[str, str, Any]:
    """The broker that the configuration means, its cluster, and how its events are decoded."""
    from schemas.registry import Codec
    from streams.registry import open_registry
    from streams.supervisor import resolve_brokers

    endpoint = resolve_brokers(config)
    return endpoint.brokers, endpoint.cluster, Codec(open_registry(config))


def _told(letter: Any) -> dict[str, Any]:
    from schemas.times import format_us
    from streams.dead_letters import short_id

    return {
        "id": short_id(letter), "cluster": letter.cluster, "topic": letter.topic, "partition": letter.partition,
        "offset": letter.offset, "time": format_us(letter.time_us), "reason": letter.reason, "detail": letter.detail,
        "value_bytes": letter.value_bytes, "replay_of": letter.replay_of, "replays": letter.replays,
        "replayed": format_us(letter.replayed_us) if letter.replays else None, "replayed_to": letter.replayed_to,
    }  # fmt: skip


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _say(told: Any, as_json: bool) -> list[Replayed]:
    """Tell what becomes of each as it becomes known; as JSON, of all at the end."""
    from collections import Counter

    from streams.dead_letters import short_id

    done: list[Replayed] = []
    for each in told:
        done.append(each)
        if each.state != "sent":
            click.echo(f"{short_id(each.letter)}: {each.state}: {each.detail}.", err=True)
        elif not as_json:
            click.echo(f"{short_id(each.letter)} -> {each.detail}")
    counts = Counter(each.state for each in done)
    if as_json:
        letters = [{"id": short_id(e.letter), "state": e.state, "detail": e.detail} for e in done]
        echo_json({"counts": dict(sorted(counts.items())), "dead_letters": letters})
    else:
        words = ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items()))
        click.echo(words or "There is nothing to replay.", err=True)
    return done


def _lines(letter: Any, original: Original, again: Sequence[Any]) -> list[str]:
    """A dead letter for people."""
    from schemas.times import format_us
    from streams.dead_letters import short_id
    from streams.reasons import reason

    meaning, remedy = reason(letter.reason)
    found = _row("dead letter", short_id(letter)) + _row("cluster", letter.cluster)
    found += _row("record of", format_us(letter.time_us))
    found += _row("reason", f"{letter.reason}: {meaning}") + _row("remedy", remedy) + _row("detail", letter.detail)
    if letter.replay_of:
        found += _row("replay of", letter.replay_of)
    if letter.replays:
        found += _row("replayed", f"{letter.replays} times, last {format_us(letter.replayed_us)}: {letter.replayed_to}")
    for each in again:
        found += _row("dead again", f"{short_id(each)}: {each.reason}: {each.detail}")
    if original.missing is not None:
        return found + _row("bytes", f"cannot be had: {original.missing}")
    key, value = original.key, original.value
    found += _row("key", "null" if key is None else key.decode(errors="replace") or "empty")
    size = "null" if value is None else f"{len(value):,} bytes"
    found += _row("value", f"{size}, from {original.source}")
    for at in range(0, min(len(value or b""), HEAD_BYTES), BYTES_A_LINE):
        line = (value or b"")[at : at + BYTES_A_LINE]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        found.append(f"{'':<{MARGIN}}{at:04x}  {line.hex(' '):<{3 * BYTES_A_LINE}} {text}")
    if len(value or b"") > HEAD_BYTES:
        found += _row("", "and so on; --json has all of it (base64)")
    return found


def _row(title: str, text: str, margin: int = MARGIN) -> list[str]:
    """A titled paragraph; what came from events cannot steer the terminal."""
    from labeling.render import plain

    wrapped = textwrap.wrap(plain(text), WIDTH - margin, break_on_hyphens=False) or [""]
    return [f"{title if at == 0 else '':<{margin}}{line}" for at, line in enumerate(wrapped)]
