"""The rules that are usual elsewhere, and how one is asked for: ``psi:0.2:daily``.

A rule gives every feature of every window a number and is in alarm above a limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.errors import UsageError
from streams.lab.classic import (
    Statistic,
    chi_square_test,
    jensen_shannon,
    kolmogorov_or_chi,
    population_stability,
    wasserstein_or_js,
)

SPEC = re.compile(r"([a-z0-9]+)(?::([0-9.eE+-]+))?(?::([a-z0-9]+))?")
LENGTHS = {"hourly": 1, "daily": 24, "weekly": 168}
LENGTH = re.compile(r"(\d{1,4})([hd])")


class RuleError(UsageError):
    """A rule cannot be read."""

    action = "Such as psi:0.2:daily, ks:0.05:6h, w1, js, chi2 or adwin:0.002."


@dataclass(frozen=True)
class Kind:
    """A family of rules.

    Attributes
    ----------
    statistic
        None: river's ADWIN, row by row.
    usual
        The limit that is usual, in ``unit``.
    is_p
        The limit is a p-value, shared by all features (Bonferroni).
    told
        What it is, and whose limit is the usual one.
    """

    statistic: Statistic | None
    usual: float
    told: str
    is_p: bool = False


KINDS: Mapping[str, Kind] = {
    "psi": Kind(population_stability, 0.2, "population stability index; the rule of thumb"),
    "ks": Kind(kolmogorov_or_chi, 0.05, "Kolmogorov-Smirnov, of categories chi-square; alibi-detect", is_p=True),
    "w1": Kind(wasserstein_or_js, 0.1, "Wasserstein in standard deviations, of categories JS in nats; Evidently"),
    "chi2": Kind(chi_square_test, 0.05, "chi-square of the cells", is_p=True),
    "js": Kind(jensen_shannon, 0.1, "Jensen-Shannon distance, base 2; NannyML"),
    "adwin": Kind(None, 0.002, "river's ADWIN of numbers, row by row; its default"),
}


@dataclass(frozen=True)
class Rule:
    """A rule as it is asked for.

    Attributes
    ----------
    name
        Of :data:`KINDS`.
    limit
        Above it (below it: a p-value) is an alarm.
    hours
        Length of a window; of ADWIN: how often one is told.
    """

    name: str
    limit: float
    hours: int = 24

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read ``NAME[:LIMIT[:LENGTH]]``.

        >>> Rule.parse("psi:0.25:6h")
        Rule(name='psi', limit=0.25, hours=6)
        >>> Rule.parse("ks").label
        'ks:0.05:daily'
        """
        match = SPEC.fullmatch(text.strip())
        if match is None or match[1] not in KINDS:
            raise RuleError(f"'{text}' is not a rule; there are {', '.join(KINDS)}.")
        kind = KINDS[match[1]]
        try:
            limit = kind.usual if match[2] is None else float(match[2])
        except ValueError:
            raise RuleError(f"'{match[2]}' is not a number.") from None
        is_share = kind.is_p or kind.statistic is None
        if not (0 < limit < 1 if is_share else 0 < limit < math.inf):
            raise RuleError(f"The limit of '{text}' must be above 0{' and below 1' if is_share else ''}.")
        hours = 24 if match[3] is None else _hours(match[3])
        if hours is None:
            what = "neither a limit nor a window's length" if match[2] is None else "not a window's length"
            raise RuleError(f"'{match[3]}' in '{text}' is {what} (hourly, daily, weekly, 6h, 3d).")
        return cls(match[1], limit, hours)

    @property
    def kind(self) -> Kind:
        """What it computes."""
        return KINDS[self.name]

    @property
    def length(self) -> str:
        """Of a window, in words."""
        words = {hours: word for word, hours in LENGTHS.items()}
        return words.get(self.hours, f"{self.hours}h")

    @property
    def label(self) -> str:
        """As it is asked for."""
        return f"{self.name}:{self.limit:g}:{self.length}"


USUAL = tuple(Rule(name, kind.usual) for name, kind in KINDS.items())


def _hours(text: str) -> int | None:
    if text in LENGTHS:
        return LENGTHS[text]
    match = LENGTH.fullmatch(text)
    hours = int(match[1]) * (24 if match[2] == "d" else 1) if match else 0
    return hours if 1 <= hours <= 31 * 24 else None
