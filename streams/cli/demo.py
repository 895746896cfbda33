"""``flywheel demo``: the whole loop, once, on real data."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from streams.cli import Session, pass_session

if TYPE_CHECKING:
    from labeling.store import LabelStore

CARDS = 5


@click.command()
@click.argument("data", type=click.Choice(["flights", "digits"]), default="flights")
@click.option(
    "--fault", default="gate-to-runway", show_default=True, help="What is planted on 6 May; 'none' for nothing."
)
@click.option(
    "--auto/--ask",
    default=None,
    help="A simulated reviewer, or you: the first cards of every page, all the digits. Default: simulated for flights; "
    "you for digits, where there is a terminal.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures of the end as one JSON object on stdout.")
@click.option("--keep", is_flag=True, help="Leave the status page up at the end, until Ctrl-C.")
@click.option("--fresh", is_flag=True, help="Start over, whatever an earlier run left in the folder.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), help="Default: .flywheel/demo-DATA.")
@pass_session
def demo(
    _session: Session,
    data: str,
    fault: str,
    auto: bool | None,
    as_json: bool,
    keep: bool,
    fresh: bool,
    folder: Path | None,
) -> None:
    """Watch the loop turn: real flights with a planted fault, or digits that you label.

    Everything goes through the real parts: client, topics, worker, labeling store, retraining, gate. A run that was
    stopped is continued by the same command.
    """
    from streams.log import configure

    configure("error")
    place = (folder or Path(".flywheel") / f"demo-{data}").resolve()

    def say(text: str) -> None:
        click.echo(text, err=as_json)

    def at_end(result: dict[str, Any], url: str) -> None:
        if as_json:
            click.echo(json.dumps(result, indent=1))
        if not keep:
            return
        click.echo(f"The status page stays up at {url}; Ctrl-C ends it.", err=True)
        threading.Event().wait()

    ask = not auto if auto is not None else data == "digits" and sys.stdin.isatty() and not as_json
    if data == "digits":
        from streams.demo import digits_story

        asked = _review if ask else None
        digits_story.run(place, say, fresh=fresh, review=asked, at_end=at_end)
    else:
        from streams.demo import story

        cards = (lambda store: _review(store, CARDS)) if ask else None
        story.run(place, say, fault=fault, fresh=fresh, review=cards, at_end=at_end)


def _review(store: LabelStore, limit: int) -> None:
    """Some cards for the person at the terminal, the most urgent first."""
    from labeling.leases import Filters
    from streams.cli.labels import default_reviewer
    from streams.cli.review import Keys, Review

    Review(store, default_reviewer(), Keys(), Filters(state="open"), limit).run()
