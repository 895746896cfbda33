"""Parts of a summary: integer counters under integer codes, so that merging is addition and a correction subtraction.

One part holds the counters of one (model, version, role, slice, window) on one time axis:

``event``
    by prediction time: rows, cells of every feature, outcomes of the rows whose truth is known so far;
``late``
    the same of rows whose hour was over when input and prediction met, but for their outcomes: an hour that was judged
    does not change. Who asks how many rows there are adds them to those of ``event``;
``due``
    by the hour in which the truth is decided at the latest, or came if that is later or nobody says: every row enters
    exactly once, whatever came, so that there is no maturity bias (rows, sum p, sum y, sum p(1-p)). Users' words, too,
    by the time at which they were said;
``fact``
    by the time of the feedback that said what an input really was: each comparison stands in one hour, which is
    complete when the hour is over, because what comes later stands in the hour that is open then.
``log``
    by the event time that a record of a topic states, or the hour that was open when it came if that is later, before
    any join: version and role are empty, the slice is all.
    Codes are ``LOG_SIDE`` times the topic's place among the sources plus the ``ARRIVED`` and ``LATENESS`` constants.

Real values enter as integers of 1e-6 ("micro"), rounded per row: every merge in every order gives the same bits. Those
of a regression are in the unit of its contract.

The code space
--------------
===================  ==============================================================================================
0 .. 999             scalars, the ``N`` .. constants
1000 + bin           calibration: matured rows whose score lies in that one of 128 bins
2000 + bin           of those, positives (multiclass: right answers)
3000 + bin           of those, sum of p, micro
4000 + 64 p + t      confusion: predicted label p, true label t; 63 stands for any other
8192 + bin           rows whose score lies in that bin, matured or not
8320 + bin           binary: matured rows of that bin whose answer was right
8448 + bin           rows of the random audit whose truth is known, by bin of the score
8576 + bin           of those, positives
8704 + bin           of those, right answers
8832 + 64 y + delay  truths that came so long after the prediction, by what they say (y: 1 or 0; a regression: 0)
9000 + feature       values outside the contract's range or domain
10000 + 128 f + c    rows of feature f (its index in the profile) in cell c
300000 + feature     inputs held against what feedback says they were (``fact`` axis)
310000 + feature     of those, the ones that differ by more than the contract's tolerance
===================  ==============================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
CodeArray = npt.NDArray[np.int32]
Axis = Literal["event", "late", "due", "fact", "log"]

MICRO = 1_000_000
ALL_SLICE = "all"
"""Name of the slice of every row; a declared slice is called ``field=value``."""

N = 0
"""Rows: predictions."""
N_INPUT = 1
"""Rows whose input was joined: only they have cells."""
N_SCORED = 2
"""Rows with a score."""
SUM_SCORE = 3
"""Sum of the scores, micro, of all rows that have one."""
N_TRUTH = 4
"""Rows whose truth is known (on the due axis: decided)."""
SUM_P = 5
"""Sum of p over the rows of ``N_TRUTH``, micro; of a regression: of the predicted value."""
SUM_Y = 6
"""Sum of y over them, micro: 1 for the positive label, multiclass 1 for a right answer, a regression's true value."""
SUM_PQ = 7
"""Sum of the model's own variance over them, micro: p(1-p); a regression, which states none: (p-y)^2."""
LOG_LOSS = 8
"""Sum of log losses, micro, p clipped to [1e-6, 1-1e-6]."""
LOG_LOSS_SQ = 9
"""Sum of squared log losses, micro."""
BRIER = 10
"""Sum of (p-y)^2, micro."""
BRIER_SQ = 11
"""Sum of (p-y)^4, micro."""
N_CORRECT = 12
"""Rows whose predicted label is the true one."""
USER_RIGHT = 13
USER_WRONG = 14
N_UNDECIDED = 15
"""Rows that got their label because its time ran out."""
ABS_ERROR = 16
"""Sum of |p-y|, micro."""
N_CORRECTED = 17
"""Truths that replaced an earlier one."""
AUDIT_SHARE = 24
"""Sum of the probability with which the random audit picks a row, micro, over the rows of ``N_INPUT``."""
N_AUDIT_TRUTH = 25
"""Rows that the random audit picked and whose truth is known."""
AUDIT_ERROR = 26
"""Sum of |p-y| over them, micro; of a regression."""
AUDIT_ERROR_SQ = 27
"""Sum of (p-y)^2 over them, micro; of a regression."""
USER_EDITED = 28
"""Answers that the user took after a change."""

LOG_SIDE = 64
"""Of the log axis: codes set aside for each topic."""
ARRIVED_TWICE = 1
"""Records that an earlier one with the same id makes superfluous."""
ARRIVED_FOREIGN = 2
"""Inputs whose features are of other types than the contract's; they count nowhere else."""
ARRIVED_TRUTHS = 3
"""Feedback that is a truth."""
LATENESS = 8
"""Records that came less than a second after their event time; in ``LATENESS + k``: from 2^(k-1) s to less than 2^k."""
LATENESS_BINS = 48

CALIBRATION_N = 1000
CALIBRATION_Y = 2000
CALIBRATION_P = 3000
CONFUSION = 4000
CONFUSION_SIDE = 64
CONFUSION_OTHER = 63
SCORED = 8192
RIGHT = 8320
AUDIT_N = 8448
AUDIT_Y = 8576
AUDIT_RIGHT = 8704
DELAY = 8832
DELAY_BINS = 64
OUTSIDE = 9000
CELLS = 10_000
CELLS_SIDE = 128
PAIRED = 300_000
PAIRED_DIFFER = 310_000

SCORE_BINS = 128
_LOWER_NANO = (
    379985, 430557, 487857, 552779, 626334, 709670, 804086, 911051, 1032231, 1169510, 1325022, 1501182, 1700722,
    1926735, 2182716, 2472623, 2800927, 3172683, 3593603, 4070138, 4609572, 5220126, 5911069, 6692851, 7577241, 8577485,
    9708476, 10986943, 12431651, 14063627, 15906392, 17986210, 20332353, 22977370, 25957357, 29312231, 33085978,
    37326887, 42087728, 47425873, 53403330, 60086650, 67546691, 75858180, 85099045, 95349465, 106690594, 119202922,
    132964240, 148047198, 164516463, 182425524, 201813222, 222700139, 245085013, 268941421, 294214972, 320821301,
    348645135, 377540669, 407333400, 437823499, 468790627,
)  # fmt: skip
_NANO = 1_000_000_000
SCORE_EDGES: npt.NDArray[np.float64] = np.array(
    [*_LOWER_NANO, _NANO // 2, *(_NANO - edge for edge in reversed(_LOWER_NANO))], dtype=np.float64
) / float(_NANO)
"""127 edges, logits -7.875 .. 7.875 by .125, written down to 1e-9 so that no platform's ``exp`` decides a bin."""
DELAY_EDGES_US: Ints = np.array([(4 + k % 4) << (24 + k // 4) for k in range(DELAY_BINS - 1)], np.int64)
"""63 edges, four to an octave, from 67 seconds to 32 days: multiples of 2^24 us, so that bits tell the bin."""
_DELAY_FIRST = (np.float64(DELAY_EDGES_US[0]).view(np.int64) >> 50) - 1
_FAR_SHIFT = 46
"""64 keys an octave: an edge is an eighth further out than the one before."""


def _far_tables() -> tuple[int, int, npt.NDArray[np.int16], npt.NDArray[np.float64]]:
    """For every key of a distance from 0, and then from 1: the bin where the key begins, and the edge in it, if any."""
    halves = SCORE_EDGES[:64], np.sort(1.0 - SCORE_EDGES[63:])
    keys = [edges.view(np.int64) >> _FAR_SHIFT for edges in halves]
    first = min(int(k[0]) for k in keys) - 1
    size = max(int(k[-1]) for k in keys) - first + 1
    bins, edges = np.zeros((2, size), np.int16), np.full((2, size), np.inf)
    for side in (0, 1):
        assert len(np.unique(keys[side])) == len(keys[side]), "two edges share a key"
        at = keys[side] - first
        edges[side, at] = halves[side]
        before = np.searchsorted(keys[side], first + np.arange(size), side="left")
        bins[side] = before if side == 0 else 127 - before
    return first, size, bins.ravel(), edges.ravel()


_FAR_FIRST, _FAR_KEYS, _FAR_BIN, _FAR_EDGE = _far_tables()


@dataclass(frozen=True, eq=False)
class Part:
    """Counters of one slice of one model version in one window.

    Attributes
    ----------
    model, version, role
        Who answered (``champion``, ...).
    slice
        ``all`` or ``field=value``.
    axis
        What ``window_us`` counts: prediction time, due time, the time of feedback, or a record's own.
    window_us
        Start of the window, microseconds since 1970 UTC.
    codes, counts
        Counters; codes need not be sorted and may repeat, counts may be negative (a retraction).
    profile
        Id of the profile that the codes of cells and features refer to; empty: whichever the reader has.
    """

    model: str
    version: str
    role: str
    slice: str
    axis: Axis
    window_us: int
    codes: CodeArray
    counts: Ints
    profile: str = ""

    def is_of(self, profile: str) -> bool:
        """Whether its cells are those of a profile; those of another one must never be read as them."""
        return self.profile in ("", profile)

    def as_dict(self) -> dict[int, int]:
        """Counters that are not zero, by code."""
        return {int(code): int(count) for code, count in zip(*merge([(self.codes, self.counts)]), strict=True)}


def merge(pairs: Iterable[tuple[CodeArray, Ints]]) -> tuple[CodeArray, Ints]:
    """Add counters up: sorted distinct codes and their sums, zeros dropped.

    >>> one = np.array([7, 3], np.int32), np.array([1, 2])
    >>> codes, counts = merge([one, (np.array([7], np.int32), np.array([-1]))])
    >>> codes.tolist(), counts.tolist()
    ([3], [2])
    """
    listed = list(pairs)
    if not listed:
        return np.empty(0, np.int32), np.empty(0, np.int64)
    codes = np.concatenate([c for c, _ in listed])
    counts = np.concatenate([n for _, n in listed]).astype(np.int64, copy=False)
    if not len(codes):
        return codes.astype(np.int32), counts
    by = np.argsort(codes, kind="stable")  # the pieces are mostly sorted, which this sort makes use of
    ordered = codes[by]
    heads = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    sums = np.add.reduceat(counts[by], heads)
    kept = sums != 0
    return ordered[heads][kept].astype(np.int32), sums[kept]


def negate(codes: CodeArray, counts: Ints) -> tuple[CodeArray, Ints]:
    """The retraction of these counters."""
    return codes, -counts


def cell_code(feature: int, cell: int) -> int:
    """Code of the counter of one cell of one feature (index in the profile)."""
    return CELLS + CELLS_SIDE * feature + cell


def confusion_code(predicted: int, truth: int) -> int:
    """Code of the counter of a predicted and a true label (places in the contract's labels, 63 for any other)."""
    return CONFUSION + CONFUSION_SIDE * min(predicted, CONFUSION_OTHER) + min(truth, CONFUSION_OTHER)


def micro(values: npt.NDArray[np.float64]) -> Ints:
    """Integers of 1e-6, rounded half to even; values beyond 9e12 are clipped, not-a-number counts 0."""
    known = np.where(np.isnan(values), 0.0, values)  # nan_to_num costs five times as much
    rounded: Ints = np.rint(np.clip(known, -9e12, 9e12) * MICRO).astype(np.int64)
    return rounded


def score_bin(p: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The calibration bin of each score, 0 .. 127; above all edges when it is not a number.

    As a binary search in :data:`SCORE_EDGES`, in a quarter of its time: the upper bits of the distance from 0 or 1,
    whichever is nearer, leave at most one edge to compare with.

    >>> score_bin(np.array([0.0, 0.4999, 0.5, 1.0])).tolist()
    [0, 63, 64, 127]
    """
    inside = np.fmax(np.fmin(p, 1.0), 0.0)
    is_high = inside >= 0.5
    far = np.where(is_high, 1.0 - inside, inside)  # exact
    key = np.clip((far.view(np.int64) >> _FAR_SHIFT) - _FAR_FIRST, 0, _FAR_KEYS - 1)
    key += is_high * _FAR_KEYS
    low = _FAR_BIN.take(key)
    edge = _FAR_EDGE.take(key)
    found: npt.NDArray[np.int16] = np.where(is_high, low - (far > edge), low + (far >= edge))
    return found.astype(np.uint8)


def truth_counters(
    p: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    kind: Literal["binary", "multiclass", "regression"],
    unit: float = 1.0,
    is_right: npt.NDArray[np.bool_] | None = None,
) -> list[tuple[CodeArray | int, Ints | int]]:
    """What each row with a known truth adds to its part on the event axis, but for the confusion counters.

    Parameters
    ----------
    p
        The score: probability of the positive label, confidence of the answer, or the value.
    y
        1.0 where the truth is positive (multiclass: where the answer was right), else 0.0; or the true value.
    kind, unit
        The target's.
    is_right
        Whether the predicted label is the true one, where that is known beside a binary target's score.

    Returns
    -------
    list of (codes, amounts)
        Each a number for every row, or an array with one entry a row.
    """
    sums = due_counters(p, y, kind, unit)
    p, y = p / unit, y / unit
    with np.errstate(over="ignore"):  # a score may be any double; what is beyond all bounds is cut at one
        squared = np.square(p - y)
        fourth = np.square(squared)
    sums += [(BRIER, micro(squared)), (BRIER_SQ, micro(fourth)), (ABS_ERROR, micro(np.abs(p - y)))]
    if kind == "regression":
        return sums
    likely = np.clip(micro(p), 1, MICRO - 1) / MICRO
    loss = -np.log(np.where(y > 0.5, likely, 1.0 - likely))
    bins = score_bin(p).astype(np.int32)
    if kind == "binary" and is_right is not None:
        sums.append((bins + np.int32(RIGHT), is_right.astype(np.int64)))
    return [
        *sums,
        (LOG_LOSS, micro(loss)),
        (LOG_LOSS_SQ, micro(np.square(loss))),
        (bins + np.int32(CALIBRATION_N), 1),
        (bins + np.int32(CALIBRATION_Y), (y > 0.5).astype(np.int64)),
        (bins + np.int32(CALIBRATION_P), micro(p)),
    ]


def due_counters(
    p: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    kind: Literal["binary", "multiclass", "regression"],
    unit: float = 1.0,
) -> list[tuple[CodeArray | int, Ints | int]]:
    """What each decided row adds to its part on the due axis (``N`` not included); see :func:`truth_counters`."""
    p, y = p / unit, y / unit
    with np.errstate(over="ignore"):
        variance = np.square(p - y) if kind == "regression" else p * (1.0 - p)
    return [(N_TRUTH, 1), (SUM_P, micro(p)), (SUM_Y, micro(y)), (SUM_PQ, micro(variance))]


def delay_code(delay_us: Ints, y: npt.NDArray[np.float64]) -> CodeArray:
    """Code of the counter of a truth that came so long after its prediction and says ``y``.

    >>> delay_code(np.array([0, 70_000_000, 3_600_000_000]), np.array([0.0, 0.0, 1.0])).tolist()
    [8832, 8833, 8919]
    """
    quarter = delay_us.astype(np.float64).view(np.int64) >> 50  # exponent and two bits of the fraction
    late: Ints = np.clip(quarter - _DELAY_FIRST, 0, DELAY_BINS - 1)
    code: Ints = DELAY + DELAY_BINS * (y > 0.5) + late
    return code.astype(np.int32)


def audit_counters(
    p: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    is_right: npt.NDArray[np.bool_],
    kind: Literal["binary", "multiclass", "regression"],
    unit: float = 1.0,
) -> list[tuple[CodeArray | int, Ints | int]]:
    """What a row with a known truth adds beside :func:`truth_counters` when the random audit picked it.

    Only these are a sample of known propensity: what the headline estimate is made of.
    """
    if kind == "regression":
        with np.errstate(over="ignore"):
            error = np.abs(p - y) / unit
            squared = np.square(error)
        return [(N_AUDIT_TRUTH, 1), (AUDIT_ERROR, micro(error)), (AUDIT_ERROR_SQ, micro(squared))]
    bins = score_bin(p).astype(np.int32)
    return [
        (N_AUDIT_TRUTH, 1),
        (bins + np.int32(AUDIT_N), 1),
        (bins + np.int32(AUDIT_Y), (y > 0.5).astype(np.int64)),
        (bins + np.int32(AUDIT_RIGHT), is_right.astype(np.int64)),
    ]


def group(
    groups: npt.NDArray[Any], counters: Iterable[tuple[CodeArray | int, Ints | int]]
) -> list[tuple[int, CodeArray, Ints]]:
    """Add the counters of rows up by group.

    Parameters
    ----------
    groups
        A small non-negative integer a row: the part that the row belongs to; negative: none.
    counters
        Pairs as :func:`truth_counters` returns them.

    Returns
    -------
    list of (group, codes, counts)
        In the order of the groups; codes sorted, zeros dropped.
    """
    kept = np.flatnonzero(groups >= 0)
    place = groups[kept].astype(np.int64)
    keys: list[Ints] = []
    amounts: list[Ints] = []
    for code, amount in counters:
        ones = np.ones(len(place), np.int64)
        keys.append((place << 32) | (code[kept].astype(np.int64) if isinstance(code, np.ndarray) else code))
        amounts.append(amount[kept] if isinstance(amount, np.ndarray) else ones * amount)
    if not keys or not len(place):
        return []
    distinct, where = np.unique(np.concatenate(keys), return_inverse=True)
    sums = np.zeros(len(distinct), np.int64)
    np.add.at(sums, where, np.concatenate(amounts))
    distinct, sums = distinct[sums != 0], sums[sums != 0]
    owner, code_of = distinct >> 32, (distinct & 0xFFFFFFFF).astype(np.int32)
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    ends = np.append(starts, len(owner))[1:]
    return [(int(owner[a]), code_of[a:b], sums[a:b]) for a, b in zip(starts, ends, strict=True)]
