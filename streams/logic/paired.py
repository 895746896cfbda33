"""Channel P: does the input that was served agree with what feedback says it really was?

Margins cannot show a value that is plausible and wrong: a join to another row, a small shift, a default in a few rows.
Where a contract names the fact that feedback brings for a field, every row is its own witness. What is judged is the
share of compared rows that differ by more than the tolerance, against the field's healthy record: feeds have bad days,
and rows of one bad hour come together, so the evidence is tempered as that of the other channels is. Counts stand at
the hour of the feedback: of an hour that is over all comparisons are in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streams.logic.counts import DIFFER, ROWS, Floats, Hour, HourlyCounts, Ints, Layout
from streams.logic.drift import divergence
from streams.logic.policy import MonitorPolicy


@dataclass(frozen=True)
class PairedWindow:
    """Compared rows of one field and slice in one window.

    Attributes
    ----------
    slice, feature, hours, rows
        Where, which, how long, how many.
    share
        Of the rows that differ.
    usual
        The share on healthy days.
    z
        Evidence that it is more, in tempered standard deviations.
    """

    slice: str
    feature: str
    hours: int
    rows: int
    share: float
    usual: float
    z: float


@dataclass
class PairedRecord:
    """How often the fields differ when nothing is wrong; it belongs to the feeds, not to a model version.

    Attributes
    ----------
    rows, differ
        int64[slice, feature]: compared rows of healthy days, and those of them that differ.
    excess, scale
        float64[length, slice, feature]: sum of 2 R^2 [more than usual] - V, and of N^2 e(1-e), of healthy windows.
    strongest
        float64[length, slice, feature]: the strongest evidence of a healthy window.
    days
        Days folded in.
    folded_day
        The last of them.
    is_changed
        The meaning of an input changed: nothing is said until the new one is known as well as a new feed is.
    """

    rows: Ints
    differ: Ints
    excess: Floats
    scale: Floats
    strongest: Floats
    days: int = 0
    folded_day: int | None = None
    is_changed: bool = field(default=False)

    @classmethod
    def empty(cls, layout: Layout, lengths: Sequence[int], *, is_changed: bool = False) -> PairedRecord:
        """Nothing seen yet."""
        shape = len(layout.slices), len(layout.profile.features)
        wide = (len(lengths), *shape)
        ints = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        return cls(*ints, np.zeros(wide), np.zeros(wide), np.zeros(wide), is_changed=is_changed)

    def is_known(self, policy: MonitorPolicy) -> bool:
        """Whether it has seen enough healthy days to be a record."""
        return self.days >= policy.baseline_days_min

    def usual(self, policy: MonitorPolicy) -> Floats:
        """The expected share, float64[slice, feature]: a slice is drawn towards all rows, those towards the prior."""
        prior, weight = policy.paired_usual, policy.paired_rows
        whole = (self.differ[0] + prior * weight) / (self.rows[0] + weight)
        return np.asarray((self.differ + whole * weight) / (self.rows + weight))

    def correlation(self, policy: MonitorPolicy) -> Floats:
        """The intra-class correlation to reckon with, float64[length, slice, feature]."""
        own = np.minimum(np.maximum(self.excess, 0.0) / np.maximum(self.scale, 1e-9), 1.0)
        weight = policy.spread_days
        weighted = (self.days * own + weight * policy.paired_prior_icc) / (self.days + weight)
        return np.asarray(np.minimum(1.0, policy.spread_factor * weighted))

    def fold(self, counts: HourlyCounts, hours: Sequence[Hour], is_clean: Callable[[Hour, int], bool],
             policy: MonitorPolicy) -> None:  # fmt: skip
        """Add the healthy hours of one day, ``is_clean(hour, length)`` says of which windows.

        The day's own rows count as usual already when its windows are looked at: else the first days of a feed would
        be held against the prior, and teach that everything varies.
        """
        seen = [counts.facts[hour] for hour in hours if hour in counts.facts]
        if not seen:
            return
        total = np.stack(seen).sum(0, dtype=np.int64)
        self.rows, self.differ = self.rows + total[ROWS], self.differ + total[DIFFER]
        usual = self.usual(policy)
        for hour in hours[:: policy.spread_step_hours]:
            used = np.array([is_clean(hour, length) for length in policy.paired_hours])
            n, x = window_counts(counts, policy.paired_hours, hour)
            n, x = np.where(used[:, None, None], n, 0), np.where(used[:, None, None], x, 0)
            if self.is_known(policy):
                self.strongest = np.maximum(self.strongest, self.evidence(n, x, policy))
            residual, variance = x - n * usual, n * usual * (1.0 - usual)
            self.excess = self.excess + np.where(residual > 0, 2.0 * np.square(residual), 0.0) - variance
            self.scale = self.scale + n * variance
        self.days += 1

    def evidence(self, n: Ints, x: Ints, policy: MonitorPolicy) -> Floats:
        """z of windows, [length, slice, feature]; 0 where there are too few rows, or no more than usual differ."""
        usual = self.usual(policy)
        share = x / np.maximum(n, 1)
        tempered = 1.0 / (1.0 + n * (self.correlation(policy) + policy.spread_floor**2))
        z = np.sqrt(2.0 * tempered * n * divergence(share, np.broadcast_to(usual, share.shape)))
        is_enough = (n >= policy.paired_rows_min) & (x >= policy.paired_differ_min) & (share > usual)
        return np.where(is_enough, z, 0.0)

    def judge(
        self, counts: HourlyCounts, hour: Hour, is_clean: Callable[[Hour, int], bool], policy: MonitorPolicy
    ) -> list[PairedWindow]:
        """The fields that differ more than they ever did: of each the window and slice with the most evidence."""
        if hour not in counts.facts or (self.is_changed and not self.is_known(policy)):
            return []
        n, x = window_counts(counts, policy.paired_hours, hour)
        z = self.evidence(n, x, policy)
        z[[not is_clean(hour, length) for length in policy.paired_hours]] = 0.0
        record = self.strongest.max(axis=1, keepdims=True)  # a bad day of a feed shows in one slice or another
        strength = z / np.maximum(policy.paired_z, record * policy.ask_again)
        found = []
        for f in np.flatnonzero((strength >= 1.0).any(axis=(0, 1))).tolist():
            i, s = np.unravel_index(int(np.argmax(strength[:, :, f])), strength.shape[:2])
            rows = int(n[i, s, f])
            found.append(
                PairedWindow(
                    slice=counts.layout.slices[s], feature=counts.layout.profile.features[f].name,
                    hours=policy.paired_hours[i], rows=rows, share=float(x[i, s, f] / rows),
                    usual=float(self.usual(policy)[s, f]), z=float(z[i, s, f]),
                )
            )  # fmt: skip
        return found


def window_counts(counts: HourlyCounts, lengths: Sequence[int], hour: Hour) -> tuple[Ints, Ints]:
    """Compared rows and those that differ in the windows of these lengths (increasing) that end with an hour."""
    shape = len(counts.layout.slices), len(counts.layout.profile.features)
    total: npt.NDArray[np.int64] = np.zeros((2, *shape), np.int64)
    sums, back = [], 0
    for length in lengths:
        for past in range(hour - back, hour - length, -1):
            if past in counts.facts:
                total = total + counts.facts[past]
        back = length
        sums.append(total)
    both = np.stack(sums, axis=1)
    return both[ROWS], both[DIFFER]
