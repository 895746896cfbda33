"""Which of a dataset's rows a challenger learns from, and what it is told about them.

On a change of meaning the rows matter more than the model: the same trainer on the same rows ends between a quarter
and twice the loss, by recipe alone. A recipe is data: it has a name from which it can be parsed, and goes into the
dataset's manifest; what it does to a table of rows is in :mod:`retrain.columns`. Must not import
polars: policies are parsed with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from schemas.times import DAY_US, from_us, parse_time

VERSION_COLUMN = "contract_version"
SAME_CHANGE_US = DAY_US
"""Reviewers see one change at several inputs, each a little later; two changes within a day cannot be told apart."""

RecipeKind = Literal["mixed", "since", "version_column", "exclude"]


@dataclass(frozen=True)
class Recipe:
    """A rule for the training rows.

    Parameters
    ----------
    kind
        ``mixed``: all rows. ``since``: only rows from ``at_us`` on. ``version_column``: all rows, and a column that
        says how many changes of meaning a row has seen. ``exclude``: all rows but those of ``ranges``.
    ranges
        Event times ``[start, end)``.
    """

    kind: RecipeKind
    at_us: int | None = None
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        """The recipe as text; :func:`parse_recipe` is its inverse.

        >>> since(0).name
        'since(1970-01-01T00:00:00Z)'
        """
        if self.kind == "mixed":
            return "mixed"
        if self.kind == "exclude":
            return f"exclude({', '.join(f'{_text(start)}/{_text(end)}' for start, end in self.ranges)})"
        assert self.at_us is not None
        return f"{self.kind}({_text(self.at_us)})"

    def boundaries(self, inherited: Sequence[int] = ()) -> tuple[int, ...]:
        """Event times at which the version column grows by one; ``inherited`` are those of the champion."""
        times = set(inherited)
        if self.kind == "version_column":
            assert self.at_us is not None
            times.add(self.at_us)
        return tuple(sorted(times))


def _text(us: int) -> str:
    return from_us(us).isoformat().replace("+00:00", "Z")


def mixed() -> Recipe:
    """All rows, old and new."""
    return Recipe("mixed")


def since(at_us: int) -> Recipe:
    """Only the rows from ``at_us`` on."""
    return Recipe("since", at_us)


def version_column(at_us: int) -> Recipe:
    """All rows, with a column that tells those before ``at_us`` from those after."""
    return Recipe("version_column", at_us)


def exclude(ranges: Iterable[tuple[int, int]]) -> Recipe:
    """All rows but those of the ranges ``[start, end)``."""
    return Recipe("exclude", ranges=tuple(sorted(ranges)))


def parse_recipe(text: str) -> Recipe:
    """A recipe from its name, such as ``since(2013-05-06T09:00:00Z)``.

    Raises
    ------
    ValueError
        If the text is not a recipe's name.

    >>> parse_recipe("exclude(2013-05-01/2013-05-02)").name
    'exclude(2013-05-01T00:00:00Z/2013-05-02T00:00:00Z)'
    """
    text = text.strip()
    if text == "mixed":
        return mixed()
    kind, bracket, rest = text.partition("(")
    if bracket and rest.endswith(")"):
        body = rest[:-1]
        if kind == "since":
            return since(parse_time(body))
        if kind == "version_column":
            return version_column(parse_time(body))
        if kind == "exclude":
            pairs = [part.strip().partition("/") for part in body.split(",")]
            ranges = [(parse_time(start), parse_time(end)) for start, _, end in pairs]
            if all(start < end for start, end in ranges):
                return exclude(ranges)
    raise ValueError(f"'{text}' is not a recipe: mixed, since(TIME), version_column(TIME) or exclude(START/END, ...)")


def serving_constants(boundaries: Sequence[int]) -> dict[str, float]:
    """What the added columns hold for every row that is served from now on."""
    return {VERSION_COLUMN: 1.0 + len(boundaries)} if boundaries else {}


@dataclass(frozen=True)
class Proposal:
    """An accepted proposal of the reviewers.

    Parameters
    ----------
    kind
        As on the ``labels`` topic: ``new_contract_version`` (the meaning of an input changed at ``from_us``),
        ``exclude_range`` or ``contract_rule`` (the inputs of the range are broken); others bring no recipe.
    to_us
        Event time of the last input concerned; None: it goes on.
    """

    proposal_id: str
    kind: str
    from_us: int | None = None
    to_us: int | None = None


@dataclass(frozen=True)
class Incident:
    """A stretch of event time in which something was wrong; ``end_us`` None while it is open."""

    incident_id: str
    start_us: int
    end_us: int | None
    kind: str


def candidates(
    standing: Sequence[Recipe], proposals: Sequence[Proposal], incidents: Sequence[Incident], as_of_us: int
) -> tuple[Recipe, ...]:
    """The recipes that compete: the standing ones, and those that follow from what was found.

    An accepted change of meaning brings all its rivals with it, so that the table shows what each would have done. An
    incident that is still open and that nobody has explained brings "without these rows" only.
    """
    found: list[Recipe] = list(standing)
    changes: list[int] = []
    for proposal in sorted(proposals, key=lambda p: p.from_us or 0):
        at = proposal.from_us
        if at is None or at >= as_of_us:
            continue
        if proposal.kind == "new_contract_version":
            if not _is_near(at, changes):
                changes.append(at)
                found += [exclude([(at, as_of_us)]), since(at), version_column(at)]
        elif proposal.kind in {"exclude_range", "contract_rule"}:
            found.append(exclude([(at, as_of_us if proposal.to_us is None else proposal.to_us + 1)]))
    starts = [incident.start_us for incident in incidents if incident.end_us is None and incident.start_us < as_of_us]
    if starts and not changes:
        found.append(exclude([(min(starts), as_of_us)]))
    return tuple({recipe.name: recipe for recipe in found}.values())


def unsolved(proposals: Sequence[Proposal], boundaries: Sequence[int]) -> tuple[Proposal, ...]:
    """The proposals whose change the champion does not know of yet."""
    return tuple(p for p in proposals if p.from_us is None or not _is_near(p.from_us, boundaries))


def _is_near(at_us: int, others: Sequence[int]) -> bool:
    return any(abs(at_us - other) < SAME_CHANGE_US for other in others)


def change_us(recipes: Sequence[Recipe]) -> int | None:
    """When the newest change of meaning took place, as the recipes see it."""
    times = [r.at_us for r in recipes if r.kind in {"since", "version_column"} and r.at_us is not None]
    return max(times, default=None)
