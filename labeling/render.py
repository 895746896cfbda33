"""A card as lines of text for a terminal of 80 x 24, with or without colour. Pure."""

from __future__ import annotations

import textwrap
import unicodedata
from dataclasses import dataclass
from typing import Literal

from labeling.cards import COUNTED_ITEMS, Card, FeatureLine
from labeling.items import Value
from labeling.projection import Proposal
from schemas.times import SECOND_US, format_us

WIDTH = 80
HEIGHT = 22
"""Two lines of the 24 belong to the prompt."""
LABEL_KEYS = "1234567890"
VERDICT_TEXTS = {
    "input_broken": "input broken",
    "meaning_changed": "meaning changed",
    "world": "world",
    "unpredictable": "unpredictable",
    "truth_wrong": "truth wrong or missing",
}
SHADES = " ░▒▓█"
SHADES_ASCII = " .:*#"
NOTE_LINES_MAX = 3
Emphasis = Literal["plain", "title", "mark", "dim"]


@dataclass(frozen=True)
class Line:
    """One line of the screen and how it stands out where there is colour."""

    text: str
    emphasis: Emphasis = "plain"


def plain(text: str) -> str:
    """Text from elsewhere without anything that could steer the terminal.

    >>> plain("bad\\x1b[2J text\\n")
    'bad?[2J text '
    """
    spaced = text.replace("\n", " ").replace("\t", " ").replace("\r", " ")
    return "".join("?" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in spaced)


def show(value: Value) -> str:
    """A feature's value, short."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return plain(str(value))


def label_keys(labels: tuple[str, ...]) -> dict[str, str]:
    """Key and label: a label that is one digit is its own key, else they are numbered from 1 (the tenth is 0).

    >>> label_keys(("late", "on_time"))
    {'1': 'late', '2': 'on_time'}
    """
    if labels and all(len(label) == 1 and label in LABEL_KEYS for label in labels):
        return {label: label for label in labels}
    return dict(zip(LABEL_KEYS, labels, strict=False))


def verdict_keys(verdicts: tuple[str, ...]) -> dict[str, str]:
    """Key and verdict, numbered from 1."""
    return dict(zip(LABEL_KEYS, verdicts, strict=False))


def render(card: Card, *, now_us: int, is_ascii: bool = False) -> list[Line]:
    """The card, at most :data:`HEIGHT` lines of at most :data:`WIDTH` characters."""
    head = _head(card, now_us)
    said = _said(card)
    evidence = _evidence(card)
    context = _context(card)
    keys = [Line(text, "dim") for text in _wrap(key_help(card))]
    room = HEIGHT - len(head) - len(said) - len(evidence) - len(context) - len(keys)
    body = _picture(card, is_ascii) if card.picture else _features(card, room)
    lines = [*head, *said, *evidence, *body[: max(room, 0)], *context, *keys]
    return [Line(_cut(line.text), line.emphasis) for line in lines[:HEIGHT]]


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="         ", break_long_words=True) or [""]


def _head(card: Card, now_us: int) -> list[Line]:
    left_s = max(card.until_us - now_us, 0) // SECOND_US
    title = f"{plain(card.item_id)}  [{card.model}]  yours for {left_s // 60}:{left_s % 60:02d}"
    if card.is_audit:
        why = f"picked by chance (1 in {1 / card.selection_probability:,.0f}), to measure quality without bias"
    else:
        why = f"rule {plain(card.rule)}, picks {card.selection_probability:.0%} of such predictions"
    if card.policy:
        why += f" (rules {plain(card.policy)[:16]})"
    if card.complaints > 1:
        why += f"; reported {card.complaints} times"
    if card.required_n > 1:
        why += f"; answer {card.answers + 1} of {card.required_n}"
    return [Line(title, "title"), *(Line(text) for text in _wrap(f"Why here {why}"))]


def _said(card: Card) -> list[Line]:
    score = "" if card.score is None else f", score {card.score:.3f}"
    version = f" (version {plain(card.version)})" if card.version else ""
    model = f"Model    {plain(card.label or '-')}{score}{version}, asked {format_us(card.event_time_us)}"
    lines = [Line(model)]
    if card.kind == "verdict":
        is_wrong = card.truth is not None and card.truth != card.label
        lines.append(Line(f"Truth    {plain(card.truth or 'none has come')}", "mark" if is_wrong else "plain"))
    if card.user_label or card.note:
        note = f' "{plain(card.note)}"' if card.note else ""
        said = _wrap(f"User     {plain(card.user_label or '')}{note}")
        lines.extend(Line(text) for text in said[:NOTE_LINES_MAX])
    return lines


def _evidence(card: Card) -> list[Line]:
    lines = []
    for d in card.differences:
        if d.by is None:
            text = f"Input    {d.feature} missing, truth feed says {d.fact} {d.true:g}"
        else:
            verb = f"{d.by:+g}" if d.is_beyond else f"{d.by:+g}, within {d.tolerance:g}"
            text = f"Input    {d.feature} {d.given:g}, truth feed {d.fact} {d.true:g}: {verb}"
        lines.append(Line(text, "mark" if d.is_beyond else "plain"))
    for name, text in list(card.breaches.items())[:4]:
        value = next((f.value for f in card.features if f.name == name), None)
        lines.append(Line(f"Contract {plain(name)} {show(value)} is {text}", "mark"))
    named = {d.fact for d in card.differences}
    facts = [f"{plain(name)} {show(value)}" for name, value in card.facts.items() if name not in named]
    if facts:
        lines.extend(Line(text) for text in _wrap(f"Facts    {', '.join(facts)}")[:2])
    return lines


def _features(card: Card, room: int) -> list[Line]:
    """Features in as many columns as are needed to fit; those with a mark have a * before them."""
    if room <= 0 or not card.features:
        return []
    for columns in (2, 3, 4):
        width = WIDTH // columns
        cells = [_cell(f, width) for f in card.features]
        rows = -(-len(cells) // columns)
        if rows <= room or columns == 4:
            break
    shown = cells if rows <= room else cells[: room * columns - 1]
    if len(shown) < len(cells):
        shown = [*shown, f"... and {len(cells) - len(shown)} more".ljust(width)]
    return [Line("".join(shown[i : i + columns]).rstrip()) for i in range(0, len(shown), columns)]


def _cell(feature: FeatureLine, width: int) -> str:
    value = show(feature.value)
    name = f"{'*' if feature.mark else ' '}{plain(feature.name)}"
    room = max(width - len(value) - 2, 6)
    return _cut(f"{_cut(name, room)} {value}", width - 1).ljust(width)


def _picture(card: Card, is_ascii: bool) -> list[Line]:
    """Two characters a pixel in five shades: legible without colour, and grey shows the holes of an 8 or a 0."""
    assert card.picture is not None
    shades = SHADES_ASCII if is_ascii else SHADES
    full = max(max(row) for row in card.picture) or 1.0
    levels = len(shades) - 1
    rows = ["".join(shades[min(max(round(v / full * levels), 0), levels)] * 2 for v in row) for row in card.picture]
    return [Line(f"         |{row}|") for row in rows]


def _context(card: Card) -> list[Line]:
    lines: list[Line] = []
    similar = card.similar
    if similar.n:
        text = f"Like it  {similar.n}{' or' if similar.n >= COUNTED_ITEMS else ''} more open"
        if similar.where:
            among = "" if similar.n_compared == similar.n else f" of the newest {similar.n_compared}"
            text += f", {similar.n_where}{among} in {plain(similar.where)}"
        if similar.differences:
            low, high = similar.differences
            text += f", off by {low:+g} to {high:+g}"
        text += f", since {format_us(similar.first_us)}"
        lines.extend(Line(part) for part in _wrap(text))
    if card.history:
        told = ", ".join(f"{count} {VERDICT_TEXTS.get(name, plain(name))}" for name, count in card.history.items())
        lines.extend(Line(part) for part in _wrap(f"So far   {told}")[:2])
    if card.incident:
        since = f" (since {format_us(card.incident_from_us)})"
        lines.extend(Line(part, "mark") for part in _wrap(f"Incident {plain(card.incident)}{since}")[:2])
    return lines


def key_help(card: Card) -> str:
    """The keys that decide this card."""
    if card.kind == "verdict":
        choices = [f"{key} {VERDICT_TEXTS[v]}" for key, v in verdict_keys(card.verdicts).items()]
    else:
        keyed = label_keys(card.labels)
        named = all(key == label for key, label in keyed.items())
        choices = ["0-9 the digit"] if named and keyed else [f"{key} {plain(v)}" for key, v in keyed.items()]
        choices.append("x input unusable")
    accept = [f"a {plain(card.label)} is right"] if card.label else []
    return "Keys     " + " | ".join([*choices, *accept, "space skip", "f flag", "u undo", "? help", "q quit"])


def proposal_lines(proposal: Proposal) -> list[str]:
    """A proposal in sentences."""
    detail = proposal.detail
    about = detail["feature"] or proposal.cause
    where = f" in {detail['slice']}" if detail["slice"] else ""
    from_, to = format_us(detail["from_us"]), detail["to_us"]
    span = f"from {from_} on" if to is None else f"from {from_} to {format_us(to)}"
    what = {
        "new_contract_version": f"a new contract version for {about}{where}, {span}",
        "exclude_range": f"leave out the rows of {about}{where}, {span}",
        "contract_rule": f'the contract rule "{detail["contract_rule"]}"{where}, and leave out the rows {span}',
        "answer_incident": f"answer the incident {detail['incident_id']} with: the world changed, {span}",
    }[proposal.kind]
    position = detail["position"]
    first = (
        f" First input: {position['topic']}, partition {position['partition']}, offset {position['offset']}."
        if position
        else ""
    )
    said = f'{detail["support"]} verdicts say "{VERDICT_TEXTS[proposal.verdict]}" of {about}.'
    return textwrap.wrap(plain(f"{said} Proposal {proposal.proposal_id}: {what}.{first}"), WIDTH)
