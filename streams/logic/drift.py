"""Channel D: which margins left their baseline, with how much evidence.

For every slice, direction and window length, ``z = sign(q-e) sqrt(2 g N KL(q||e))``: the log likelihood ratio of the
window's share q against the expected share e, tempered by ``g = V/(V + N^2 tau^2)`` for the correlation of rows in a
window. A candidate leaves the threshold and its own healthy record behind; whether it wakes somebody is decided by the
put-back (:mod:`streams.logic.impact`): many true changes of weather or schedule hurt nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streams.logic.baseline import Windows
from streams.logic.counts import Floats, Layout
from streams.logic.policy import MonitorPolicy

TOP_CELLS = 3
SPECIAL_ENOUGH = 0.8
"""Of the strongest evidence, for values that are none to be named instead of the others' share."""


@dataclass(frozen=True, order=True)
class Candidate:
    """One feature of one slice that left its baseline.

    Attributes
    ----------
    strength
        |z| over its threshold; candidates sort by it.
    slice, feature
        Names.
    hours
        Length of the window.
    direction
        In words: a cell, or ``< edge``.
    z
        Signed evidence: positive where there is more of it than expected.
    rows
        N.
    observed, expected
        Shares q and e.
    cells
        The cells that moved most: (in words, observed, expected), by (q-e)/sqrt(e).
    """

    strength: float
    slice: str
    feature: str
    hours: int
    direction: str
    z: float
    rows: int
    observed: float
    expected: float
    cells: tuple[tuple[str, float, float], ...] = ()


def evidence(windows: Windows, correlation: Floats, policy: MonitorPolicy, least: float | None = None) -> Floats:
    """z of every direction, [window, direction]; 0 where it is certainly below ``least``.

    Parameters
    ----------
    windows
        Counts against the baseline.
    correlation
        [side, length, slice, direction] of the block of the day in which the windows end.
    policy
        Threshold and floor.
    least
        Default: the threshold.

    Notes
    -----
    KL(q||e) <= (q-e)^2/(e(1-e)) bounds z from above without a logarithm; only where the bound reaches the threshold is
    z worked out: a thousandth of the directions.
    """
    at = (windows.length, windows.slice)
    n = windows.rows.astype(np.float64)[:, None]
    difference = windows.x - windows.expected
    unit = n - windows.expected
    unit *= windows.expected  # N^2 e(1-e)
    # z^2 <= 2 g N KL <= 2 V/(V + N^2 icc e(1-e)) (X - Ne)^2 / (N e(1-e))
    total = np.where(difference > 0, correlation[1][at], correlation[0][at])
    total += policy.spread_floor**2
    total *= unit
    np.maximum(total, windows.together, out=total)
    total += windows.variance
    difference *= difference
    difference *= windows.variance
    difference *= 2.0 * n / (least or policy.drift_z) ** 2
    enough = difference >= total * unit
    z = np.zeros_like(unit)
    w, d = np.nonzero(enough)
    size = n[w, 0]
    q, e = windows.x[w, d] / size, windows.expected[w, d] / size
    tempered = windows.variance[w, d] / total[w, d]
    z[w, d] = np.sign(q - e) * np.sqrt(2.0 * tempered * size * divergence(q, e))
    return np.asarray(z)


def divergence(q: Floats, e: Floats) -> Floats:
    """KL(q||e) of two Bernoulli laws, in nats; 0 <= q <= 1, 0 < e < 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(q > 0, q * np.log(q / e), 0.0) + np.where(q < 1, (1 - q) * np.log((1 - q) / (1 - e)), 0.0)
    return np.asarray(np.maximum(kl, 0.0))


def strongest(z: Floats, windows: Windows, layout: Layout, lengths: int) -> Floats:
    """max |z| by [length, slice, feature]."""
    best = np.zeros((lengths, len(layout.slices), len(layout.profile.features)))
    if len(z):
        best[windows.length, windows.slice] = np.maximum.reduceat(np.abs(z), layout.owner_starts, axis=-1)
    return best


def line(record: Floats, policy: MonitorPolicy) -> Floats:
    """What evidence must reach to be asked what it does to the answers."""
    return np.asarray(np.maximum(policy.drift_z, record * policy.ask_again))


def candidates(
    z: Floats, windows: Windows, threshold: Floats, layout: Layout, policy: MonitorPolicy
) -> list[Candidate]:
    """The features that left their threshold ([length, slice, feature]) behind, strongest first.

    One for each slice and feature: the length with the most evidence.
    """
    best = strongest(z, windows, layout, len(policy.drift_hours))
    ends = np.append(layout.owner_starts, layout.directions)
    found: dict[tuple[int, int], Candidate] = {}
    for i, s, f in zip(*(a.tolist() for a in np.nonzero(best >= threshold)), strict=True):
        feature = layout.profile.features[f]
        strength = float(best[i, s, f] / threshold[i, s, f])
        if (s, f) in found and found[s, f].strength >= strength:
            continue
        w = int(np.flatnonzero((windows.length == i) & (windows.slice == s))[0])
        d = int(ends[f]) + _told(np.abs(z[w, ends[f] : ends[f + 1]]), feature.specials)
        rows = int(windows.rows[w])
        found[s, f] = Candidate(
            strength=strength,
            slice=layout.slices[s],
            feature=feature.name,
            hours=policy.drift_hours[i],
            direction=layout.direction_label(d),
            z=float(z[w, d]),
            rows=rows,
            observed=float(windows.x[w, d] / rows),
            expected=float(windows.expected[w, d] / rows),
            cells=_moved(windows, layout, w, int(ends[f]), f),
        )
    return sorted(found.values(), key=lambda c: (-c.strength, c.slice, c.feature, c.hours))


def _told(z: Floats, specials: int) -> int:
    """The direction to name: the most evident one, or the missing (NaN, unseen) values that are behind it.

    That 4 % are missing shows as well in "96 % are below the highest value", which nobody would understand.
    """
    best, special = int(np.argmax(z)), int(np.argmax(z[:specials]))
    return special if z[special] >= SPECIAL_ENOUGH * z[best] else best


def _moved(windows: Windows, layout: Layout, w: int, first: int, f: int) -> tuple[tuple[str, float, float], ...]:
    """The cells of a feature that moved most, none for a single row; its cells are the first of its directions."""
    feature = layout.profile.features[f]
    cells = slice(first, first + feature.cell_count)
    observed, expected = windows.x[w, cells] / windows.rows[w], windows.expected[w, cells] / windows.rows[w]
    pull = np.abs(observed - expected) / np.sqrt(np.maximum(expected, 1.0 / windows.rows[w]))
    best = np.argsort(-pull, kind="stable")[:TOP_CELLS]
    return tuple((feature.cell_label(k), float(observed[k]), float(expected[k])) for k in best.tolist() if pull[k] > 0)
