"""``flywheel review``: one card, one key, next card. A plain terminal prompt; from a pipe it reads lines."""

from __future__ import annotations

import os
import select
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from schemas.errors import FlywheelError
from streams.cli.labels import reviewer_option, with_store

if TYPE_CHECKING:
    from labeling.cards import Card
    from labeling.decisions import Decision
    from labeling.leases import Claim, Filters
    from labeling.projection import Proposal
    from labeling.store import LabelStore

HEARTBEAT_S = 15.0
"""A shown card keeps its lease by a sign of life this often, up to the policy's longest lease."""
STYLES = {"plain": {}, "title": {"bold": True}, "mark": {"fg": "yellow", "bold": True}, "dim": {"dim": True}}
KEY_BYTES_MAX = 64
UNDO_KEYS = ("u", "\x7f", "\x08")
QUIT_KEYS = ("q", "\x03", "\x04")
HELP = """\
  1-5      why the model was wrong (verdict cards): the card names them
  0-9      the right label (answer cards)
  a        the model is right
  x        the input is unusable
  space    skip, with a reason or none
  f        flag for an adjudicator, with a reason or none
  n        write a note that goes with your next key
  u        take the last decision back (ten deep; backspace too)
  ?        this help
  q        quit; the card goes back to the queue
From a pipe each line is one key and, after it, the note: "2 the feed changed"."""


class NothingDone(Exception):
    """Ctrl-C while words were asked for."""


class Keys:
    """Reads decisions: single keys from a terminal, else lines of a key and a text."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty()
        self._rest = ""
        self._ahead = ""

    def key(self, timeout_s: float) -> str | None:
        """The next key; None when none came in time; ``q`` at the end of input."""
        if self.is_terminal:
            return self._pressed(timeout_s)
        line = sys.stdin.readline()
        if not line:
            return "q"
        self._rest = line[1:].strip()
        return line[0] if line != "\n" else "?"

    def _pressed(self, timeout_s: float) -> str | None:
        """One key of the terminal, without Enter and without an echo.

        Keys typed ahead stay for the next card; an escape sequence (an arrow, say) is one key that means nothing.
        """
        import termios
        import tty

        if self._ahead:
            key, self._ahead = self._ahead[0], self._ahead[1:]
            return key
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal, termios.TCSADRAIN)
            ready, _, _ = select.select([terminal], [], [], timeout_s)
            if not ready:
                return None
            typed = os.read(terminal, KEY_BYTES_MAX).decode(errors="replace")
        except KeyboardInterrupt:
            return "q"
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
        if typed.startswith("\x1b"):
            return "\x1b"
        self._ahead = typed[1:]
        return typed[0] if typed else "q"

    def text(self, question: str) -> str:
        """A line of text: asked for on a terminal, the rest of the key's line in a pipe."""
        if not self.is_terminal:
            rest, self._rest = self._rest, ""
            return rest
        try:
            return str(click.prompt(question, default="", show_default=False))
        except click.Abort as abort:
            raise NothingDone from abort

    def choice(self, question: str) -> str:
        """One key as the answer to a question; keys typed ahead were not meant for it."""
        if self.is_terminal:
            import termios

            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
            self._ahead = ""
        click.echo(question, nl=not self.is_terminal)
        while (key := self.key(HEARTBEAT_S)) is None:
            pass
        if self.is_terminal:
            click.echo(f" {key if key.isprintable() else ''}")
        return key


@dataclass
class Review:
    """One reviewer at the queue of one model."""

    store: LabelStore
    reviewer: str
    keys: Keys
    filters: Filters
    limit: int | None
    decided: int = 0
    note: str = ""
    claim: Claim | None = None
    card: Card | None = None
    shown_at: float = field(default=0.0)

    def run(self) -> None:
        """Show cards until the queue, the limit or the reviewer's patience ends."""
        while self.limit is None or self.decided < self.limit:
            if self.claim is None:
                self.claim = self.store.next(self.reviewer, self.filters)
            if self.claim is None:
                click.echo("Nothing is left for you in this queue.")
                break
            self._show()
            if not self._decide():
                break
        if self.claim is not None:
            self.store.release(self.claim.token)
        word = "decision" if self.decided == 1 else "decisions"
        click.echo(f"{self.decided} {word}. Thank you.")

    def _show(self) -> None:
        from labeling.cards import build_card
        from labeling.render import render

        assert self.claim is not None
        self.card = build_card(self.store, self.claim)
        if self.keys.is_terminal:
            click.clear()
        lines = render(self.card, now_us=self.store.clock(), is_ascii=not _can_draw())
        for line in lines:
            click.echo(styled(line.text, line.emphasis))
        self.shown_at = time.monotonic()

    def _wait(self) -> str:
        """The next key; meanwhile the lease is kept, but not for somebody who left."""
        assert self.claim is not None
        click.echo("> ", nl=False)
        while (key := self.keys.key(HEARTBEAT_S)) is None:
            if time.monotonic() - self.shown_at < self.store.policy.lease_s_max:
                try:
                    self.store.heartbeat(self.claim.token)
                except FlywheelError as error:
                    click.echo(str(error))
        click.echo("" if not key.isprintable() else key)
        return key

    def _decide(self) -> bool:
        """One key; False to end the session."""
        key = self._wait()
        if key in QUIT_KEYS:
            return False
        if key == "?":
            click.echo(HELP)
            if self.keys.is_terminal:
                self.keys.choice("Any key goes on.")
            return True
        try:
            if key == "n":
                self.note = self.keys.text("Note")
            elif key in UNDO_KEYS:
                self._undo()
            else:
                self._act(key)
        except NothingDone:
            click.echo("Nothing was done.")
        except FlywheelError as error:
            click.echo(styled(str(error), "mark"))
            self.claim = None
            if self.keys.is_terminal:
                self.keys.choice("Any key goes on.")
        return True

    def _act(self, key: str) -> None:
        """Submit, skip or flag, as the key says; another key changes nothing."""
        assert self.claim is not None
        seconds = time.monotonic() - self.shown_at
        token = self.claim.token
        if key == " ":
            self._done(self.store.skip(token, self._words("Why skip it (Enter: no reason)"), seconds=seconds))
            return
        if key == "f":
            self._done(self.store.flag(token, self._words("What should be looked at"), seconds=seconds))
            return
        answer, verdict = self._meaning(key)
        if answer is None and verdict is None:
            click.echo(f"The key '{key if key.isprintable() else '?'}' means nothing here; ? lists all keys.")
            return
        note = self.note if self.keys.is_terminal else self.keys.text("")
        if verdict == "truth_wrong" and answer is None:
            answer, note = self._true_label(note)
        self._done(self.store.submit(token, answer=answer, verdict=verdict, note=note, seconds=seconds))

    def _meaning(self, key: str) -> tuple[str | None, str | None]:
        """The answer and the verdict that a key stands for on this card."""
        from labeling.render import label_keys, verdict_keys

        card = self.card
        assert card is not None
        if key == "a" and card.label is not None:
            is_contradicted = card.kind == "verdict" and card.truth != card.label
            return card.label, "truth_wrong" if is_contradicted else None
        if key == "x":
            return None, "input_broken"
        if card.kind == "verdict":
            return None, verdict_keys(card.verdicts).get(key)
        return label_keys(card.labels).get(key), None

    def _true_label(self, note: str) -> tuple[str | None, str]:
        """The label that is true instead, if the reviewer knows it; in a pipe the note's first word may be it."""
        from labeling.render import label_keys

        assert self.card is not None
        if not self.keys.is_terminal:
            first, _, rest = note.partition(" ")
            return (first, rest) if first in self.card.labels else (None, note)
        keyed = label_keys(self.card.labels)
        choices = ", ".join(f"{key} {label}" for key, label in keyed.items())
        return keyed.get(self.keys.choice(f"What is true? {choices}, any other key: not known")), note

    def _words(self, question: str) -> str:
        if self.note:
            return self.note
        return self.keys.text(question)

    def _done(self, decision: Decision) -> None:
        self.decided += 1
        self.claim, self.note = None, ""
        body = decision.event.body
        what = body.get("verdict") or body.get("answer") or decision.event.kind
        click.echo(f"{what}: {body['prediction_id']}  (u takes it back)")
        if decision.proposal is not None:
            self._propose(decision.proposal)

    def _propose(self, proposal: Proposal) -> None:
        """Ask an owner about the proposal that the last verdict completed; it can also wait."""
        from labeling.render import proposal_lines

        for line in proposal_lines(proposal):
            click.echo(styled(line, "mark"))
        owners = self.store.policy.owners
        if owners and self.reviewer not in owners:
            click.echo(f"An owner decides: flywheel labels proposals accept {proposal.proposal_id}")
            return
        key = self.keys.choice("Accept it? y yes, n no, any other key: later")
        if key == "y":
            self.store.accept(proposal.proposal_id, self.reviewer)
            click.echo("Accepted: the next retraining follows it.")
        elif key == "n":
            self.store.refuse(proposal.proposal_id, self.reviewer)
            click.echo("Refused.")

    def _undo(self) -> None:
        held = self.claim
        undone = self.store.undo(self.reviewer)
        if undone is None:
            click.echo("There is nothing to take back.")
            return
        self.decided = max(self.decided - 1, 0)
        click.echo(f"Taken back: {undone.reverted.kind} {undone.event.body['prediction_id']}.")
        if undone.withdrawn is not None:
            click.echo(f"The proposal {undone.withdrawn.proposal_id} lost its support and is withdrawn.")
        if undone.claim is not None:
            if held is not None:
                self.store.release(held.token)
            self.claim = undone.claim


def styled(text: str, emphasis: str) -> str:
    """Text with the emphasis's colour, unless NO_COLOR is set."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **STYLES[emphasis])  # type: ignore[arg-type]


def _can_draw() -> bool:
    """Whether the terminal's encoding has block characters."""
    try:
        "░▒▓█".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@click.command("review")
@with_store
@reviewer_option
@click.option("--limit", type=click.IntRange(min=1), help="Stop after so many decisions.")
@click.option("--rule", help="Only items of this rule.")
@click.option("--flagged", is_flag=True, help="Decide on flagged items, as an adjudicator.")
def review(store: LabelStore, reviewer: str, limit: int | None, rule: str | None, flagged: bool) -> None:
    """Look at what the model got wrong: one card, one key, next card."""
    from labeling.leases import Filters

    Review(store, reviewer, Keys(), Filters(rule=rule, state="flagged" if flagged else "open"), limit).run()
